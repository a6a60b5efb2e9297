// Every schema: the table of contents of the ops. Kernels register themselves at the end of their own file; fake kernels,
// autograd, autocast and vmap are in mmdet_ddetr/ops/. The shapes are in <op>.h.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mmdet_ddetr, m) {
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
  // -> gradients of value, reference_points, sampling_offsets, attention_logits
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes,"
      " Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, bool deterministic)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}
