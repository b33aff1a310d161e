// The gradients of the primitive ragged operators. Every operator is linear in its data, and its gradient is another
// one of them, called through the dispatcher; hence derivatives of any order, forward mode, torch.func and tracing.
//
//   gather <-> scatter_add    write <-> write_backward    sum <-> expand    fill -> fill
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "common/check.h"

namespace raggedbev::ragged {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::variable_list;

// ---- the operators, as the dispatcher calls them
// ---------------------------------------------------------------------

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

using Gather = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const at::Scalar&,
                      int64_t);
using ScatterAdd = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, c10::SymInt,
                          int64_t);
using Write = Tensor(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                     const OptionalTensor&, const OptionalTensor&, c10::SymInt, const at::Scalar&);
using WriteBackward = std::tuple<Tensor, Tensor>(const Tensor&, const OptionalTensor&, const Tensor&,
                                                 const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                                 c10::SymInt, bool, bool);
using Fill = Tensor(const Tensor&, const Tensor&, const at::Scalar&, int64_t);
using Sum = Tensor(const Tensor&, const Tensor&, int64_t);
using Expand = Tensor(const Tensor&, const Tensor&, c10::SymInt, int64_t);
using Pack = void(const Tensor&, at::TensorList);

const auto& gather_operator() {
  static const auto found = find_operator<Gather>("raggedbev::ragged_gather");
  return found;
}
const auto& scatter_add_operator() {
  static const auto found = find_operator<ScatterAdd>("raggedbev::ragged_scatter_add");
  return found;
}
const auto& write_operator() {
  static const auto found = find_operator<Write>("raggedbev::ragged_write");
  return found;
}
const auto& write_backward_operator() {
  static const auto found = find_operator<WriteBackward>("raggedbev::ragged_write_backward");
  return found;
}
const auto& fill_operator() {
  static const auto found = find_operator<Fill>("raggedbev::ragged_fill");
  return found;
}
const auto& sum_operator() {
  static const auto found = find_operator<Sum>("raggedbev::ragged_sum");
  return found;
}
const auto& expand_operator() {
  static const auto found = find_operator<Expand>("raggedbev::ragged_expand");
  return found;
}
const auto& pack_operator() {
  static const auto found = find_operator<Pack>("raggedbev::ragged_pack_");
  return found;
}

// ---- history
// ---------------------------------------------------------------------------------------------------------

// What a gradient needs of the call: integer tensors and what describes shapes.
struct Context {
  std::array<OptionalTensor, 5> integers;
  c10::SymInt num;           // rows of the input
  int64_t dim = -1;          // of the rows
  at::ScalarType type = {};  // of the input
  c10::SymInt num_targets;
  bool to_source = false, to_into = false;
};

// The gradients of the inputs that need one, of those of the results.
using Rule = variable_list (*)(const variable_list& grads, const Context& context, std::array<bool, 2> needed);

// A plain autograd node instead of torch::autograd::Function, which torch.func refuses.
class Backward : public torch::autograd::Node {
 public:
  Backward(const char* name, Rule rule) : name_(name), rule_(rule) {}

  void save(Context&& context) {
    for (size_t i = 0; i < saved_.size(); ++i) {
      given_[i] = context.integers[i].has_value();
      if (given_[i]) saved_[i] = torch::autograd::SavedVariable(*context.integers[i], /*is_output=*/false);
    }
    context.integers = {};
    context_ = std::move(context);
  }

  variable_list apply(variable_list&& grads) override {
    bool any = false;
    for (const Tensor& grad : grads) any = any || grad.defined();
    if (!any) return variable_list(num_outputs());
    Context context = context_;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = 0; i < saved_.size(); ++i) {
        if (given_[i]) context.integers[i] = saved_[i].unpack();
      }
    }
    variable_list results =
        rule_(grads, context, {should_compute_output(0), num_outputs() > 1 && should_compute_output(1)});
    results.resize(num_outputs());
    return results;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) saved.reset_data();
  }

  std::string name() const override { return name_; }

 private:
  const char* name_;
  Rule rule_;
  std::array<torch::autograd::SavedVariable, 5> saved_;
  std::array<bool, 5> given_;
  Context context_;
};

// Autograd holds nodes in shared or intrusive pointers, depending on torch's version.
template <typename Pointer = decltype(torch::autograd::Edge::function)>
auto make_backward(const char* name, Rule rule) {
  if constexpr (std::is_constructible_v<Pointer, Backward*, void (*)(torch::autograd::Node*)>) {
    return std::shared_ptr<Backward>(new Backward(name, rule), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<Backward>(name, rule);
  }
}

// Attaches the history of a linear operator to its results.
template <typename... Inputs>
void set_gradient(at::ArrayRef<Tensor> results, const char* name, Rule rule, Context&& context,
                  const Inputs&... inputs) {
  const auto node = make_backward(name, rule);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  node->save(std::move(context));
  for (const Tensor& result : results) torch::autograd::set_history(result, node);
}

bool needs_gradient(const Tensor& tensor) {
  return torch::autograd::compute_requires_grad(tensor);
}

bool has_tangent(const OptionalTensor& tensor) {
  return torch::autograd::isFwGradDefined(tensor);
}

void set_tangent(const Tensor& result, const Tensor& tangent) {
  result._set_fw_grad(tangent, /*level=*/0, /*is_inplace_op=*/false);
}

// ---- gather, scatter_add
// ---------------------------------------------------------------------------------------------

variable_list gather_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  const auto& [indices, num_indices, num_rows, unused0, unused1] = context.integers;
  return {scatter_add_operator().call(grads[0], *indices, num_indices, num_rows, context.num, context.dim)};
}

Tensor gather_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& indices,
                       const OptionalTensor& num_indices, const OptionalTensor& num_rows, const at::Scalar& filler,
                       int64_t dim) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return gather_operator().redispatch(keys & c10::after_autograd_keyset, data, indices, num_indices, num_rows, filler,
                                        dim);
  }();
  if (needs_gradient(data)) {
    set_gradient(out, "RaggedGatherBackward", gather_rule,
                 {{indices, num_indices, num_rows}, data.sym_size(dim), dim, data.scalar_type()}, data);
  }
  if (has_tangent(data)) {
    set_tangent(out, gather_operator().call(data._fw_grad(0), indices, num_indices, num_rows, 0, dim));
  }
  return out;
}

variable_list scatter_add_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  const auto& [indices, num_indices, num_rows, unused0, unused1] = context.integers;
  return {gather_operator().call(grads[0], *indices, num_indices, num_rows, 0, context.dim)};
}

Tensor scatter_add_autograd(c10::DispatchKeySet keys, const Tensor& values, const Tensor& indices,
                            const OptionalTensor& num_indices, const OptionalTensor& num_rows, c10::SymInt num,
                            int64_t dim) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return scatter_add_operator().redispatch(keys & c10::after_autograd_keyset, values, indices, num_indices, num_rows,
                                             num, dim);
  }();
  if (needs_gradient(values)) {
    set_gradient(out, "RaggedScatterAddBackward", scatter_add_rule,
                 {{indices, num_indices, num_rows}, 0, dim, values.scalar_type()}, values);
  }
  if (has_tangent(values)) {
    set_tangent(out, scatter_add_operator().call(values._fw_grad(0), indices, num_indices, num_rows, num, dim));
  }
  return out;
}

// ---- write, write_backward
// -------------------------------------------------------------------------------------------

// To the source what came from it; to `into` what stayed.
variable_list write_rule(const variable_list& grads, const Context& context, std::array<bool, 2> needed) {
  const auto& [source_indices, target_indices, num_indices, num_source, num_targets_valid] = context.integers;
  auto [source, into] =
      write_backward_operator().call(grads[0], source_indices, *target_indices, num_indices, num_source,
                                     num_targets_valid, context.num, needed[0], needed[1]);
  return {needed[0] ? source : Tensor(), needed[1] ? into : Tensor()};
}

Tensor write_autograd(c10::DispatchKeySet keys, const Tensor& source, const OptionalTensor& source_indices,
                      const Tensor& target_indices, const OptionalTensor& num_indices, const OptionalTensor& num_source,
                      const OptionalTensor& num_targets_valid, const OptionalTensor& into, c10::SymInt num_targets,
                      const at::Scalar& filler) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return write_operator().redispatch(keys & c10::after_autograd_keyset, source, source_indices, target_indices,
                                       num_indices, num_source, num_targets_valid, into, num_targets, filler);
  }();
  if (torch::autograd::compute_requires_grad(source, into)) {
    set_gradient(out, "RaggedWriteBackward", write_rule,
                 {{source_indices, target_indices, num_indices, num_source, num_targets_valid},
                  source.sym_size(target_indices.dim() - 1)},
                 source, into);
  }
  if (has_tangent(source) || has_tangent(into)) {
    const Tensor source_tangent = has_tangent(source) ? source._fw_grad(0) : at::zeros_like(source);
    const OptionalTensor into_tangent = has_tangent(into) ? OptionalTensor(into->_fw_grad(0)) : std::nullopt;
    set_tangent(out, write_operator().call(source_tangent, source_indices, target_indices, num_indices, num_source,
                                           num_targets_valid, into_tangent, num_targets, 0));
  }
  return out;
}

// The gradient of each row of `grad` stands where the row went.
variable_list write_backward_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  const auto& [source_indices, target_indices, num_indices, num_source, num_targets_valid] = context.integers;
  const bool from_source = context.to_source && grads[0].defined(), from_into = context.to_into && grads[1].defined();
  if (!from_source && !from_into) return {Tensor()};
  Tensor source = grads[0];
  if (!from_source) {
    c10::SymDimVector shape(grads[1].sym_sizes());
    shape[target_indices->dim() - 1] = context.num;
    source = at::zeros_symint(shape, grads[1].options());
  }
  return {write_operator().call(source, source_indices, *target_indices, num_indices, num_source, num_targets_valid,
                                from_into ? OptionalTensor(grads[1]) : std::nullopt, context.num_targets, 0)};
}

std::tuple<Tensor, Tensor> write_backward_autograd(c10::DispatchKeySet keys, const Tensor& grad,
                                                   const OptionalTensor& source_indices, const Tensor& target_indices,
                                                   const OptionalTensor& num_indices, const OptionalTensor& num_source,
                                                   const OptionalTensor& num_targets_valid, c10::SymInt num,
                                                   bool to_source, bool to_into) {
  auto [source, into] = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return write_backward_operator().redispatch(keys & c10::after_autograd_keyset, grad, source_indices, target_indices,
                                                num_indices, num_source, num_targets_valid, num, to_source, to_into);
  }();
  if (needs_gradient(grad)) {
    set_gradient({source, into}, "RaggedWriteBackwardBackward", write_backward_rule,
                 {{source_indices, target_indices, num_indices, num_source, num_targets_valid},
                  num,
                  /*dim=*/-1,
                  grad.scalar_type(),
                  grad.sym_size(target_indices.dim() - 1),
                  to_source,
                  to_into},
                 grad);
  }
  if (has_tangent(grad)) {
    const auto [source_tangent, into_tangent] =
        write_backward_operator().call(grad._fw_grad(0), source_indices, target_indices, num_indices, num_source,
                                       num_targets_valid, num, to_source, to_into);
    set_tangent(source, source_tangent);
    set_tangent(into, into_tangent);
  }
  return {source, into};
}

// ---- fill, sum, expand
// -----------------------------------------------------------------------------------------------

variable_list fill_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  return {fill_operator().call(grads[0], *context.integers[0], 0, context.dim)};
}

Tensor fill_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& sizes, const at::Scalar& value,
                     int64_t dim) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fill_operator().redispatch(keys & c10::after_autograd_keyset, data, sizes, value, dim);
  }();
  if (needs_gradient(data)) {
    set_gradient(out, "RaggedFillBackward", fill_rule, {{sizes}, 0, dim, data.scalar_type()}, data);
  }
  if (has_tangent(data)) set_tangent(out, fill_operator().call(data._fw_grad(0), sizes, 0, dim));
  return out;
}

variable_list sum_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  return {expand_operator().call(grads[0].to(context.type), *context.integers[0], context.num, context.dim)};
}

Tensor sum_autograd(c10::DispatchKeySet keys, const Tensor& data, const Tensor& sizes, int64_t dim) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return sum_operator().redispatch(keys & c10::after_autograd_keyset, data, sizes, dim);
  }();
  if (needs_gradient(data)) {
    set_gradient(out, "RaggedSumBackward", sum_rule, {{sizes}, data.sym_size(dim), dim, data.scalar_type()}, data);
  }
  if (has_tangent(data)) set_tangent(out, sum_operator().call(data._fw_grad(0), sizes, dim));
  return out;
}

variable_list expand_rule(const variable_list& grads, const Context& context, std::array<bool, 2>) {
  return {sum_operator().call(grads[0], *context.integers[0], context.dim).to(context.type)};
}

Tensor expand_autograd(c10::DispatchKeySet keys, const Tensor& values, const Tensor& sizes, c10::SymInt num,
                       int64_t dim) {
  Tensor out = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return expand_operator().redispatch(keys & c10::after_autograd_keyset, values, sizes, num, dim);
  }();
  if (needs_gradient(values)) {
    set_gradient(out, "RaggedExpandBackward", expand_rule, {{sizes}, 0, dim, values.scalar_type()}, values);
  }
  if (has_tangent(values)) set_tangent(out, expand_operator().call(values._fw_grad(0), sizes, num, dim));
  return out;
}

// ---- pack
// ------------------------------------------------------------------------------------------------------------

void pack_autograd_(c10::DispatchKeySet keys, const Tensor& out, at::TensorList samples) {
  TORCH_CHECK_VALUE(!torch::autograd::compute_requires_grad(out, samples),
                    "ragged_pack_ has no gradient, but out or a sample requires one");
  bool tangents = has_tangent(out);
  for (const Tensor& sample : samples) tangents = tangents || has_tangent(sample);
  TORCH_CHECK_VALUE(!tangents, "ragged_pack_ has no forward-mode derivative, but out or a sample has a tangent");
  const at::AutoDispatchBelowADInplaceOrView guard;
  pack_operator().redispatch(keys & c10::after_autograd_keyset, out, samples);
  out.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(raggedbev, Autograd, m) {
  m.impl("ragged_gather", &gather_autograd);
  m.impl("ragged_scatter_add", &scatter_add_autograd);
  m.impl("ragged_write", &write_autograd);
  m.impl("ragged_write_backward", &write_backward_autograd);
  m.impl("ragged_fill", &fill_autograd);
  m.impl("ragged_sum", &sum_autograd);
  m.impl("ragged_expand", &expand_autograd);
  m.impl("ragged_pack_", &pack_autograd_);
  m.impl("ragged_mask_from_indices", torch::CppFunction::makeFallthrough());
  m.impl("ragged_indices_from_mask", torch::CppFunction::makeFallthrough());
}

}  // namespace raggedbev::ragged
