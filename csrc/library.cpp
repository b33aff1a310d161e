// Every operator schema of raggedbev. Bodies register themselves per device in <part>/<part>_<device>; fake kernels and
// documentation stand beside the public Python functions.
#include <torch/library.h>

TORCH_LIBRARY(raggedbev, m) {
  // Objects [B, G], sizes [B]: see plugin/raggedbev/heatmap/gaussian.py.
  m.def(
      "draw_gaussian_heatmap(Tensor x, Tensor y, Tensor radius, Tensor? map_index, Tensor? labels, Tensor? sizes, "
      "Tensor table, SymInt num_maps, SymInt num_classes, SymInt height, SymInt width, int max_radius, "
      "float sigma_factor, float k, bool clip) -> Tensor",
      {at::Tag::pt2_compliant_tag});

  // Data [*batch, ..., N, ...], indices [*batch, K], sizes [*batch]; dim counts from the end, so that more batch
  // dimensions change nothing: see plugin/raggedbev/ragged/primitives.py.
  m.def(
      "ragged_gather(Tensor data, Tensor indices, Tensor? num_indices, Tensor? num_rows, Scalar filler, int dim) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "ragged_scatter_add(Tensor values, Tensor indices, Tensor? num_indices, Tensor? num_rows, SymInt num, int dim) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "ragged_write(Tensor source, Tensor? source_indices, Tensor target_indices, Tensor? num_indices, "
      "Tensor? num_source, Tensor? num_targets_valid, Tensor? into, SymInt num_targets, Scalar filler) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "ragged_write_backward(Tensor grad, Tensor? source_indices, Tensor target_indices, Tensor? num_indices, "
      "Tensor? num_source, Tensor? num_targets_valid, SymInt num, bool to_source, bool to_into) "
      "-> (Tensor source, Tensor into)",
      {at::Tag::pt2_compliant_tag});
  m.def("ragged_mask_from_indices(Tensor indices, Tensor? num_indices, SymInt num) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("ragged_indices_from_mask(Tensor mask, Tensor? num_rows, SymInt max_num) -> (Tensor indices, Tensor counts)",
        {at::Tag::pt2_compliant_tag});
  m.def("ragged_fill(Tensor data, Tensor sizes, Scalar value, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("ragged_sum(Tensor data, Tensor sizes, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("ragged_expand(Tensor values, Tensor sizes, SymInt num, int dim) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("ragged_pack_(Tensor(a!) out, Tensor[] samples) -> ()", {at::Tag::pt2_compliant_tag});

  // Logits [..., P, C], labels [..., G]: see plugin/raggedbev/matching/fused.py.
  m.def(
      "match_cost(Tensor cls_logits, Tensor labels, Tensor num_gt, Tensor[] preds, Tensor[] gt, Tensor?[] factors, "
      "float[] weights, Tensor? boxes, Tensor? gt_boxes, Tensor? sizes, Tensor? extra, bool softmax, "
      "float class_weight, float alpha, float gamma, float eps, float overlap_weight, float extra_weight, bool giou, "
      "bool finite) -> (Tensor cost, Tensor minima)",
      {at::Tag::pt2_compliant_tag});

  // Cost [..., G, P], num_gt [...]: see plugin/raggedbev/matching/assignment.py.
  m.def(
      "linear_assignment(Tensor cost, Tensor? num_gt, Tensor? minima, bool last_resort, bool duals) "
      "-> (Tensor pred_of_gt, Tensor gt_of_pred, Tensor status, Tensor dual_of_gt, Tensor dual_of_pred)",
      {at::Tag::pt2_compliant_tag});

  // Logits [S, R, C], labels [S, R]: see plugin/raggedbev/losses/class_loss.py.
  m.def(
      "class_loss_sums(Tensor logits, Tensor labels, Tensor? quality, Tensor? valid, float alpha, float gamma) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "class_loss_slopes(Tensor slopes, Tensor logits, Tensor labels, Tensor? quality, Tensor? valid, float alpha, "
      "float gamma) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
