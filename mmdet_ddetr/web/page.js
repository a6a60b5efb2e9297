'use strict';
const byId = (id) => document.getElementById(id);
const about = JSON.parse(document.body.dataset.about);
const stage = byId('stage'), picture = stage.querySelector('svg'), boxes = byId('boxes'), marks = byId('marks'), heat = byId('heat');
const state = { data: null, chosen: null, pinned: null, request: null };

const svg = (name, attributes, parent) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
};
const say = (text, isBad = false) => {
  byId('status').textContent = text;
  byId('status').classList.toggle('bad', isBad);
};
const hues = new Map(); // class name: its colour, a golden section from the one before
const colourOf = (name) => {
  if (!hues.has(name)) hues.set(name, `hsl(${(216 + 222.5 * hues.size) % 360} 85% 45%)`);
  return hues.get(name);
};

// ---- the recorded numbers: base64 of little-endian arrays, as in mmdet_ddetr/explain/page_numbers.py

const array = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const weightOf = (byte) => (byte / 255) ** 2;
const scaleColour = (share) => {
  const scale = state.data.colours, at = Math.min(Math.max(share, 0), 1) * (scale.length - 1), i = Math.min(Math.floor(at), scale.length - 2);
  return 'rgb(' + scale[i].map((from, c) => Math.round(from + (scale[i + 1][c] - from) * (at - i))).join(' ') + ')';
};
const decode = (data) => {
  const points = (text) => {
    const values = array(text, Uint16Array), [w, h] = data.size;
    return (i) => [(values[2 * i] / 65535 * 2 - 0.5) * w, (values[2 * i + 1] / 65535 * 2 - 0.5) * h];
  };
  data.layers = (data.decoder?.layers ?? []).map((layer) => ({
    weights: array(layer.weights, Uint8Array), points: layer.points && points(layer.points), boxes: layer.boxes && points(layer.boxes),
  }));
  data.each = data.kind === 'maps' ? data.heads * data.map[0] * data.map[1] : data.kind && data.heads * data.levels.length * data.points;
  return data;
};

// ---- drawing

const unit = () => state.data.size[0] / stage.clientWidth; // px of the image in a CSS px
const shown = () => state.data.detections.filter((d) => d.score >= Number(byId('threshold').value));

const draw = () => {
  byId('score').textContent = Number(byId('threshold').value).toFixed(2);
  if (!state.data) return;
  const found = shown(), list = byId('list');
  boxes.replaceChildren();
  list.replaceChildren();
  for (const detection of [...found].sort((a, b) => area(b) - area(a))) { // small ones last: they are on top
    const [x1, y1, x2, y2] = detection.box, group = svg('g', {}, boxes), colour = colourOf(detection.name);
    svg('rect', { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0), stroke: colour }, group);
    const isRight = x1 > 0.7 * state.data.size[0]; // its name would end outside
    const place = `translate(${isRight ? Math.min(x2, state.data.size[0]) : x1} ${Math.max(y1 - 4 * unit(), 13 * unit())}) scale(${unit()})`;
    const text = svg('text', { x: 0, y: 0, fill: colour, transform: place, 'text-anchor': isRight ? 'end' : 'start' }, group);
    text.textContent = `${detection.name} ${detection.score.toFixed(2)}`;
    group.detection = detection;
    group.addEventListener('pointerenter', () => choose(detection));
    group.addEventListener('pointerleave', () => choose(state.pinned));
    group.addEventListener('click', () => pin(detection));
  }
  for (const detection of found) {
    const button = list.appendChild(document.createElement('li')).appendChild(document.createElement('button'));
    button.type = 'button';
    button.append(document.createElement('span'), document.createElement('output'));
    button.firstChild.textContent = detection.name;
    button.lastChild.textContent = detection.score.toFixed(2);
    button.detection = detection;
    for (const event of ['pointerenter', 'focus']) button.addEventListener(event, () => choose(detection));
    for (const event of ['pointerleave', 'blur']) button.addEventListener(event, () => choose(state.pinned));
    button.addEventListener('click', () => pin(detection));
  }
  byId('count').textContent = `${found.length} of ${state.data.detections.length} detections`;
  if (!found.includes(state.pinned)) state.pinned = null;
  choose(state.pinned);
};
const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);

const pin = (detection) => { // it stays chosen while the pointer is elsewhere, on a slider for instance
  state.pinned = state.pinned === detection ? null : detection;
  choose(detection);
};
const choose = (detection) => {
  state.chosen = detection;
  boxes.classList.toggle('focus', detection !== null);
  for (const element of [...boxes.children, ...byId('list').querySelectorAll('button')])
    element.classList.toggle('chosen', element.detection === detection);
  explain();
};

const explain = () => {
  const { data, chosen } = state;
  marks.replaceChildren();
  heat.replaceChildren();
  if (!data) return;
  const layer = Number(byId('layer').value) - 1;
  byId('layer-name').textContent = data.kind ? `${layer + 1} of ${data.layers.length}` : '';
  if (!chosen) return say(summary());
  const text = `${chosen.name}, score ${chosen.score.toFixed(2)}`;
  if (!data.kind) return say(`${text}. This detector has no queries whose points or attention could be shown.`);
  const query = data.detections.indexOf(chosen), { weights, points, boxes: starts } = data.layers[layer];
  const own = weights.subarray(data.each * query, data.each * (query + 1));
  if (data.kind === 'maps') {
    drawMap(own);
    return say(`${text}. Attention of layer ${layer + 1}, mean of ${data.heads} heads.`);
  }
  if (starts) {
    const [[x1, y1], [x2, y2]] = [starts(2 * query), starts(2 * query + 1)];
    svg('rect', { class: 'start', x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) }, marks);
  }
  const largest = Math.max(weightOf(Math.max(...own)), 1e-6), levels = data.levels.length;
  const order = [...own.keys()].sort((a, b) => own[a] - own[b]); // the heaviest on top
  for (const i of order) {
    const [cx, cy] = points(data.each * query + i), level = Math.floor(i / data.points) % levels;
    svg('circle', { cx, cy, r: (2 + 0.9 * level) * unit(), fill: scaleColour(weightOf(own[i]) / largest) }, marks);
  }
  say(`${text}. ${own.length} sampling points of layer ${layer + 1}: ${data.heads} heads, ${levels} levels (larger: coarser), ` +
    `${data.points} points; red: more weight${starts ? '; dashed: the box the layer starts from' : ''}.`);
};

const drawMap = (own) => {
  const { map: [H, W], heads, extent: [x1, y1, x2, y2] } = state.data, canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [W, H];
  const mean = Array.from({ length: H * W }, (_, cell) => {
    let sum = 0;
    for (let head = 0; head < heads; head++) sum += weightOf(own[head * H * W + cell]);
    return sum / heads;
  });
  const largest = Math.max(...mean, 1e-6), context = canvas.getContext('2d'), pixels = context.createImageData(W, H);
  mean.forEach((weight, cell) => {
    const [r, g, b] = scaleColour(weight / largest).match(/\d+/g).map(Number);
    pixels.data.set([r, g, b, 20 + 160 * weight / largest], 4 * cell);
  });
  context.putImageData(pixels, 0, 0);
  svg('image', { x: x1, y: y1, width: x2 - x1, height: y2 - y1, preserveAspectRatio: 'none', href: canvas.toDataURL() }, heat);
};

const summary = () => {
  const { size: [w, h], detections } = state.data;
  if (!detections.length) return `${w} × ${h} px: nothing found.`;
  const most = detections[0];
  return shown().length ? `${w} × ${h} px. Hover a box, or go to it in the list, to see what its query looked at; a click pins it.`
    : `${w} × ${h} px: nothing above the threshold; the best is ${most.name} with ${most.score.toFixed(2)}.`;
};

// ---- an image comes

const show = (data) => {
  state.data = decode(data);
  state.pinned = null;
  const [w, h] = data.size, photo = byId('photo');
  stage.classList.remove('empty');
  picture.setAttribute('viewBox', `0 0 ${w} ${h}`);
  picture.setAttribute('aria-label', `image of ${w} × ${h} px with ${data.detections.length} detections`);
  for (const [key, value] of Object.entries({ width: w, height: h, preserveAspectRatio: 'none', href: data.image })) photo.setAttribute(key, value);
  byId('layers').hidden = !data.layers.length;
  byId('layer').max = byId('layer').value = Math.max(data.layers.length, 1);
  byId('found').hidden = false;
  fit();
};
const fit = () => {
  if (!state.data) return;
  const [w, h] = state.data.size, room = stage.parentElement.clientWidth, most = Math.max(window.innerHeight - 180, 240);
  stage.style.width = Math.min(room, most * w / h) + 'px';
  stage.style.aspectRatio = `${w} / ${h}`;
  draw();
};

const send = async (file) => {
  if (!file) return;
  if (file.size > about.bytes) return say(`${file.name} has more than ${(about.bytes / 2 ** 20).toFixed(0)} MiB.`, true);
  state.request?.abort(); // the page shows one image: the latest
  const request = state.request = new AbortController();
  stage.classList.add('busy');
  say(`${file.name}: detecting …`);
  try {
    const answer = await fetch('detect', { method: 'POST', headers: { 'Content-Type': 'application/octet-stream' }, body: file, signal: request.signal });
    const data = await answer.json();
    if (!answer.ok) throw new Error(data.error ?? `The server answers ${answer.status}.`);
    if (request === state.request) show(data);
  } catch (error) {
    if (request === state.request) say(`${file.name}: ${error instanceof TypeError ? 'The server does not answer.' : error.message}`, true);
  } finally {
    if (request === state.request) stage.classList.remove('busy');
  }
};

byId('file').addEventListener('change', (event) => { send(event.target.files[0]); event.target.value = ''; });
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop'])
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser would open the file in place of this page
    document.body.classList.toggle('dragging', kind === 'dragenter' || kind === 'dragover');
  });
document.addEventListener('drop', (event) => {
  const file = event.dataTransfer?.files[0];
  if (file) send(file);
  else say('That was no file: drop an image file.', true);
});
byId('threshold').value = about.threshold;
byId('threshold').addEventListener('input', draw);
byId('layer').addEventListener('input', explain);
window.addEventListener('resize', fit);
draw();
