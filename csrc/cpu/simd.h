// SIMD vectors for the CPU kernels, written with the vector extensions of GCC and Clang: arithmetic, comparisons and
// `mask ? a : b` come from the language, so that one source serves every instruction set.
//
// Included once per instruction set, inside its namespace and its target region (isa_*.cpp); MMDET_DDETR_BYTES is the
// width of its registers. Nothing here may be shared between instruction sets: the linker would keep one copy for all.
#pragma once

// SIMD vectors of a compute type C, float or double: N lanes, V values, I integers of the same width.
template <typename C>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int N = MMDET_DDETR_BYTES / 4;
  typedef float V __attribute__((vector_size(N * 4)));
  typedef int32_t I __attribute__((vector_size(N * 4)));
  typedef float Half __attribute__((vector_size(N * 2)));
  using Int = int32_t;
};

template <>
struct Simd<double> {
  static constexpr int N = MMDET_DDETR_BYTES >= 32 ? MMDET_DDETR_BYTES / 8 : 4;  // points go in fours
  typedef double V __attribute__((vector_size(N * 8)));
  typedef int64_t I __attribute__((vector_size(N * 8)));
  typedef double Half __attribute__((vector_size(N * 4)));
  using Int = int64_t;
};

template <typename C>
using Vec = typename Simd<C>::V;
template <typename C>
using IntVec = typename Simd<C>::I;

// Values are stored as T and computed with as Compute<T>.
template <typename T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

// Zeroed memory that begins at a cache line.
template <typename E>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<E*>(::operator new(size * sizeof(E), kLine))) {
    __builtin_memset(data_, 0, size * sizeof(E));
  }
  ~Buffer() { ::operator delete(data_, kLine); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator E*() { return data_; }
  operator const E*() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  E* const data_;
};

// ---- loads and stores of one vector, in order -------------------------------------------------------------------

template <typename Vector>
MMDET_DDETR_INLINE Vector load_bits(const void* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <typename Vector>
MMDET_DDETR_INLINE void store_bits(void* to, Vector v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

typedef uint16_t Halves __attribute__((vector_size(Simd<float>::N * 2)));  // N stored 16-bit values
typedef uint32_t Words __attribute__((vector_size(Simd<float>::N * 4)));

MMDET_DDETR_INLINE Vec<float> load(const float* from) { return load_bits<Vec<float>>(from); }
MMDET_DDETR_INLINE Vec<double> load(const double* from) { return load_bits<Vec<double>>(from); }
MMDET_DDETR_INLINE void store(float* to, Vec<float> v) { store_bits(to, v); }
MMDET_DDETR_INLINE void store(double* to, Vec<double> v) { store_bits(to, v); }

// Past the caches: memory that is written once and not read soon need not be fetched first. `to` is aligned to the
// vector.
template <typename Vector>
MMDET_DDETR_INLINE void stream_bits(void* to, Vector v) {
#if MMDET_DDETR_BYTES == 64
  _mm512_stream_si512((__m512i*)to, (__m512i)v);
#elif MMDET_DDETR_BYTES == 32
  _mm256_stream_si256((__m256i*)to, (__m256i)v);
#else
  store_bits(to, v);
#endif
}

// Before another thread may read what was streamed.
MMDET_DDETR_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// bf16 is the upper half of a float.
MMDET_DDETR_INLINE Vec<float> load(const c10::BFloat16* from) {
  return (Vec<float>)(__builtin_convertvector(load_bits<Halves>(from), Words) << 16);
}

// The 32 bits whose upper half is the nearest bf16, ties to even. NaN stays NaN.
MMDET_DDETR_INLINE Words round_to_bf16(Vec<float> v) {
  const Words bits = (Words)v;
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (Words)(v == v ? (IntVec<float>)rounded : (IntVec<float>)(bits | 0x00400000u));
}

MMDET_DDETR_INLINE void store(c10::BFloat16* to, Vec<float> v) {
  store_bits(to, __builtin_convertvector(round_to_bf16(v) >> 16, Halves));
}

#if MMDET_DDETR_BYTES == 64
MMDET_DDETR_INLINE Vec<float> load(const c10::Half* from) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from));
}
MMDET_DDETR_INLINE void store(c10::Half* to, Vec<float> v) {
  _mm256_storeu_si256((__m256i*)to,
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif MMDET_DDETR_BYTES == 32
MMDET_DDETR_INLINE Vec<float> load(const c10::Half* from) {
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
MMDET_DDETR_INLINE void store(c10::Half* to, Vec<float> v) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
MMDET_DDETR_INLINE Vec<float> load(const c10::Half* from) {
  Vec<float> v;
  for (int i = 0; i < Simd<float>::N; ++i) v[i] = static_cast<float>(from[i]);
  return v;
}
MMDET_DDETR_INLINE void store(c10::Half* to, Vec<float> v) {
  for (int i = 0; i < Simd<float>::N; ++i) to[i] = static_cast<c10::Half>(static_cast<float>(v[i]));
}
#endif

// The first n numbers of a vector, or all of it; `fill` stands for the others.
template <typename T, typename C = Compute<T>>
MMDET_DDETR_INLINE Vec<C> load_part(const T* from, int64_t n, C fill = 0) {
  if (n >= Simd<C>::N) return load(from);
  T part[Simd<C>::N];
  for (int i = 0; i < Simd<C>::N; ++i) part[i] = i < n ? from[i] : static_cast<T>(fill);
  return load(part);
}

template <typename T>
MMDET_DDETR_INLINE void store_part(T* to, int64_t n, Vec<Compute<T>> v) {
  if (n >= Simd<Compute<T>>::N) return store(to, v);
  T part[Simd<Compute<T>>::N];
  store(part, v);
  for (int i = 0; i < n; ++i) to[i] = part[i];
}

#if MMDET_DDETR_BYTES == 64
MMDET_DDETR_INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1; }
MMDET_DDETR_INLINE Vec<float> load_part(const float* from, int64_t n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(first_lanes(n), from);
}
MMDET_DDETR_INLINE void store_part(float* to, int64_t n, Vec<float> v) {
  _mm512_mask_storeu_ps(to, first_lanes(n), (__m512)v);
}
#endif

// ---- channels: two vectors at once, in an order of their own ----------------------------------------------------

// 2 N channels. bf16 splits 32-bit words into even and odd channels, which costs two operations and no shuffle; sums
// over channels and sums channel by channel do not depend on the order.
template <typename C>
struct Pair {
  Vec<C> a, b;
};

template <typename T>
constexpr int kPair = 2 * Simd<Compute<T>>::N;  // channels of a Pair

template <typename T>
MMDET_DDETR_INLINE Pair<Compute<T>> load_pair(const T* from) {
  return {load(from), load(from + kPair<T> / 2)};
}
template <>
MMDET_DDETR_INLINE Pair<float> load_pair(const c10::BFloat16* from) {
  const Words words = load_bits<Words>(from);
  return {(Vec<float>)(words << 16), (Vec<float>)(words & 0xffff0000u)};
}

template <typename T>
MMDET_DDETR_INLINE void store_pair(T* to, Pair<Compute<T>> v) {
  store(to, v.a);
  store(to + kPair<T> / 2, v.b);
}
template <>
MMDET_DDETR_INLINE void store_pair(c10::BFloat16* to, Pair<float> v) {
  store_bits(to, (round_to_bf16(v.a) >> 16) | (round_to_bf16(v.b) & 0xffff0000u));
}

// store_pair past the caches; fp16 stays with half a vector at a time.
template <typename T>
MMDET_DDETR_INLINE void stream_pair(T* to, Pair<Compute<T>> v) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    stream_bits(to, v.a);
    stream_bits(to + kPair<T> / 2, v.b);
  } else {
    alignas(64) T channels[kPair<T>];
    store_pair(channels, v);
    stream_bits(to, load_bits<Words>(channels));
  }
}

// The first n < kPair channels; the others are zero.
template <typename T>
MMDET_DDETR_INLINE Pair<Compute<T>> load_pair(const T* from, int n) {
  T channels[kPair<T>] = {};
  __builtin_memcpy(channels, from, n * sizeof(T));
  return load_pair(channels);
}

template <typename T>
MMDET_DDETR_INLINE void store_pair(T* to, Pair<Compute<T>> v, int n) {
  T channels[kPair<T>];
  store_pair(channels, v);
  __builtin_memcpy(to, channels, n * sizeof(T));
}

// ---- maths -------------------------------------------------------------------------------------------------------

template <typename C>
MMDET_DDETR_INLINE Vec<C> broadcast(C x) {
  return x - Vec<C>{};
}

// NaN stays NaN.
template <typename V>
MMDET_DDETR_INLINE V clamp(V x, V low, V high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// a b + c, rounded once where the instruction set can. The compiler may round a sum of the language's operators once in
// one place and twice in another; where results have to be bitwise equal, this is exact about it.
#if MMDET_DDETR_BYTES == 64
MMDET_DDETR_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
MMDET_DDETR_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif MMDET_DDETR_BYTES == 32
MMDET_DDETR_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
MMDET_DDETR_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
template <typename V>
MMDET_DDETR_INLINE V multiply_add(V a, V b, V c) {
#if defined(__aarch64__)
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) c[i] = __builtin_fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
#endif

// Largest integers not above x; |x| must fit the integer.
MMDET_DDETR_INLINE IntVec<float> floor_to_int(Vec<float> x) {
  const IntVec<float> t = __builtin_convertvector(x, IntVec<float>);
  return t + (__builtin_convertvector(t, Vec<float>) > x);  // a true comparison is -1
}
MMDET_DDETR_INLINE IntVec<double> floor_to_int(Vec<double> x) {
  const IntVec<double> t = __builtin_convertvector(x, IntVec<double>);
  return t + (__builtin_convertvector(t, Vec<double>) > x);
}

// exp(x) for x <= 0, to 2 units in the last place (Cephes expf). Below -87 it is 0; NaN stays NaN.
MMDET_DDETR_INLINE Vec<float> exp_of_nonpositive(Vec<float> x) {
  const Vec<float> bounded = x > -87.0f ? x : broadcast<float>(-87);  // fits the integers; NaN does not
  const IntVec<float> n = floor_to_int(bounded * 1.44269504f + 0.5f);
  const Vec<float> nf = __builtin_convertvector(n, Vec<float>);
  const Vec<float> r = x - nf * 0.693359375f - nf * -2.12194440e-4f;
  Vec<float> y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  y *= (Vec<float>)((n + 127) << 23);
  return x < -87.0f ? broadcast<float>(0) : y;
}
MMDET_DDETR_INLINE Vec<double> exp_of_nonpositive(Vec<double> x) {
  for (int i = 0; i < Simd<double>::N; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// log(1 + x) for 0 <= x <= 1, to 2 units in the last place: 2 artanh(w) with w = x / (2 + x), a polynomial in w^2 that
// is off by 5e-9 at most (least squares in w^2 <= 1/9, weighted until the extremes of the error were equal). NaN stays
// NaN.
MMDET_DDETR_INLINE Vec<float> log1p_of_fraction(Vec<float> x) {
  const Vec<float> w = x / (2 + x), v = w * w;
  Vec<float> y = v * 1.4012126625e-1f + 1.3999590278e-1f;
  y = y * v + 2.0010848343e-1f;
  y = y * v + 3.3333206177e-1f;
  return 2 * w + 2 * w * (y * v);
}
MMDET_DDETR_INLINE Vec<double> log1p_of_fraction(Vec<double> x) {
  for (int i = 0; i < Simd<double>::N; ++i) x[i] = __builtin_log1p(x[i]);
  return x;
}

// The Math of focal_loss.h.
struct VectorMath {
  template <typename V>
  static MMDET_DDETR_INLINE V exp(V x) {
    return exp_of_nonpositive(x);
  }
  template <typename V>
  static MMDET_DDETR_INLINE V log1p(V x) {
    return log1p_of_fraction(x);
  }
};

// ---- shuffles ----------------------------------------------------------------------------------------------------

template <int N>
using Lanes = std::make_integer_sequence<int, N>;

// Lane i is lane index[i] of a and b laid end to end.
template <typename C, int... index>
MMDET_DDETR_INLINE Vec<C> shuffle(Vec<C> a, Vec<C> b) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, index...);
#else  // GCC before 12
  return __builtin_shuffle(a, b, IntVec<C>{index...});
#endif
}

template <typename C, int... i>
MMDET_DDETR_INLINE Vec<C> even_lanes(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return shuffle<C, (2 * i)...>(a, b);
}
template <typename C, int... i>
MMDET_DDETR_INLINE Vec<C> odd_lanes(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return shuffle<C, (2 * i + 1)...>(a, b);
}
template <typename C, int... i>
MMDET_DDETR_INLINE Vec<C> interleave_low(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return shuffle<C, (i / 2 + (i % 2) * Simd<C>::N)...>(a, b);
}
template <typename C, int... i>
MMDET_DDETR_INLINE Vec<C> interleave_high(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return shuffle<C, ((i + Simd<C>::N) / 2 + (i % 2) * Simd<C>::N)...>(a, b);
}

// x0 y0 x1 y1 ... in a and b -> x's and y's, and back.
template <typename C>
MMDET_DDETR_INLINE void deinterleave(Vec<C> a, Vec<C> b, Vec<C>& x, Vec<C>& y) {
  x = even_lanes<C>(a, b, Lanes<Simd<C>::N>());
  y = odd_lanes<C>(a, b, Lanes<Simd<C>::N>());
}
template <typename C>
MMDET_DDETR_INLINE void interleave(Vec<C> x, Vec<C> y, Vec<C>& a, Vec<C>& b) {
  a = interleave_low<C>(x, y, Lanes<Simd<C>::N>());
  b = interleave_high<C>(x, y, Lanes<Simd<C>::N>());
}

template <typename C, int... i>
MMDET_DDETR_INLINE Vec<C> join(const C* low, const C* high, std::integer_sequence<int, i...>) {
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  using Half = typename Simd<C>::Half;
  return __builtin_shufflevector(load_bits<Half>(low), load_bits<Half>(high), i...);
#else
  C both[sizeof...(i)];
  __builtin_memcpy(both, low, sizeof(both) / 2);
  __builtin_memcpy(both + sizeof...(i) / 2, high, sizeof(both) / 2);
  return load(both);
#endif
}

// The N / 2 numbers at `low`, then those at `high`.
template <typename C>
MMDET_DDETR_INLINE Vec<C> join(const C* low, const C* high) {
  return join<C>(low, high, Lanes<Simd<C>::N>());
}

// Halves the sums that two vectors stand for: lane i takes a[i] + a[i ^ H] where bit H of i is clear, else the same of
// b.
template <typename C, int H, int... i>
MMDET_DDETR_INLINE Vec<C> fold(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  constexpr int N = Simd<C>::N;
  return shuffle<C, (i & H ? i + N : i)...>(a, b) + shuffle<C, (i & H ? (i ^ H) + N : i ^ H)...>(a, b);
}
template <typename C, int H>
MMDET_DDETR_INLINE Vec<C> fold(Vec<C> a, Vec<C> b) {
  return fold<C, H>(a, b, Lanes<Simd<C>::N>());
}

// Four vectors into one: lane i is a part of the sum of v[i % 4], and lanes i, i + 4, i + 8 ... make it whole.
template <typename C>
MMDET_DDETR_INLINE Vec<C> fold_four(const Vec<C>* v) {
  return fold<C, 2>(fold<C, 1>(v[0], v[1]), fold<C, 1>(v[2], v[3]));
}
// N / 4 results of fold_four into one: lanes 4 j ... 4 j + 3 are the whole sums of v[j].
template <typename C, int H = Simd<C>::N / 2>
MMDET_DDETR_INLINE Vec<C> fold_fours(const Vec<C>* v) {
  if constexpr (H == 2) {
    return v[0];
  } else {
    return fold<C, H>(fold_fours<C, H / 2>(v), fold_fours<C, H / 2>(v + H / 4));
  }
}

template <typename C, int H, int... i>
MMDET_DDETR_INLINE Vec<C> swap_lanes(Vec<C> v, std::integer_sequence<int, i...>) {
  return shuffle<C, (i ^ H)...>(v, v);
}
template <typename C, int H = Simd<C>::N / 2>
MMDET_DDETR_INLINE C sum_of_lanes(Vec<C> v) {
  v += swap_lanes<C, H>(v, Lanes<Simd<C>::N>());
  if constexpr (H == 1) {
    return v[0];
  } else {
    return sum_of_lanes<C, H / 2>(v);
  }
}
template <typename C, int H = Simd<C>::N / 2>
MMDET_DDETR_INLINE C max_of_lanes(Vec<C> v) {
  const Vec<C> other = swap_lanes<C, H>(v, Lanes<Simd<C>::N>());
  v = v > other ? v : other;
  if constexpr (H == 1) {
    return v[0];
  } else {
    return max_of_lanes<C, H / 2>(v);
  }
}
