// Every schema: the table of contents of the ops. Kernels register themselves at the end of their own file; fake
// kernels, autograd, autocast and vmap are in mmdet_ddetr/ops/. The shapes are in <op>.h.
#include <torch/csrc/stable/library.h>

// A fragment, whose macro lets the compiler's -D change the namespace under every PyTorch; that of PyTorch 2.10 for a
// whole library does not. tests/ops/cuda_on_host and benchmarks/gpu/variants.py build these ops beside the package's
// own.
STABLE_TORCH_LIBRARY_FRAGMENT(mmdet_ddetr, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights)"
      " -> Tensor");
  // -> gradients of value, sampling_locations, attention_weights
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations,"
      " Tensor attention_weights, bool deterministic) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets,"
      " Tensor attention_logits) -> Tensor");
  // -> gradients of value, reference_points (shape [0] unless needs_grad_reference: the encoder's are constants and the
  // sum over heads and points is a pass of its own on a GPU), sampling_offsets, attention_logits
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes,"
      " Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, bool needs_grad_reference,"
      " bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  // mask absent: plain (v1), present: modulated (v2)
  m.def(
      "deform_conv2d(Tensor input, Tensor offset, Tensor weight, int[] stride, int[] padding, int[] dilation,"
      " Tensor? mask) -> Tensor");
  // -> gradients of input, offset, weight, mask; shape [0] of what was not asked for and of an absent mask
  m.def(
      "deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, int[] stride,"
      " int[] padding, int[] dilation, Tensor? mask, bool needs_grad_samples, bool needs_grad_weight,"
      " bool deterministic) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor");
  // -> gradients of input, weight, bias; shape [0] of what was not asked for and of an absent bias
  m.def(
      "depthwise_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor? bias, int[] stride,"
      " int[] padding, bool needs_grad_input, bool needs_grad_weight, bool deterministic)"
      " -> (Tensor, Tensor, Tensor)");
  // these two are for inference: they have no gradient, but bounds of the output
  m.def(
      "depthwise_conv2d_clamped(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, float low,"
      " float high) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor packed, Tensor bias, Tensor? add, float low, float high) -> Tensor");
  // group_size 1: plain, more: position-sensitive; rounded: roi_bins.h
  m.def(
      "deform_roi_pool(Tensor input, Tensor rois, Tensor? offset, int[] output_size, float spatial_scale,"
      " int sampling_ratio, float gamma, int group_size, bool rounded) -> Tensor");
  // -> gradients of input and offset; shape [0] of what was not asked for and of an absent offset
  m.def(
      "deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois, Tensor? offset, int[] output_size,"
      " float spatial_scale, int sampling_ratio, float gamma, int group_size, bool rounded, bool needs_grad_input,"
      " bool needs_grad_offset, bool deterministic) -> (Tensor, Tensor)");
  // loss [N, C], or its sum over the classes [N]; grad_output as the loss
  m.def("sigmoid_focal_loss(Tensor logits, Tensor labels, float alpha, float gamma, bool sum_classes=False) -> Tensor");
  m.def(
      "sigmoid_focal_loss_backward(Tensor grad_output, Tensor logits, Tensor labels, float alpha, float gamma)"
      " -> Tensor");
  // cost [L, T, Q]
  m.def(
      "matching_cost(Tensor scores, Tensor boxes, Tensor image, Tensor labels, Tensor targets, float cls_weight,"
      " float l1_weight, float giou_weight, float alpha, float gamma, bool focal) -> Tensor");
  // the seed stands for the mask; the gradient is dropout of grad_output with the same seed
  m.def("dropout(Tensor input, float p, Tensor seed) -> Tensor");
  // boxes by falling score -> which of them are kept [N]
  m.def("nms_keep(Tensor boxes, float iou_threshold, int offset=0) -> Tensor");
  // -> portable, avx2 or avx512: what the CPU kernels use
  m.def("cpu_instruction_set() -> str");
}
