// Every operator schema of raggedbev. Bodies register themselves per device in <part>/<part>_<device>; fake kernels and
// documentation stand beside the public Python functions.
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(raggedbev, m) {
  m.def(
      "draw_gaussian_heatmap(Tensor map_index, Tensor x, Tensor y, Tensor radius, Tensor table, SymInt num_maps, "
      "SymInt height, SymInt width, int max_radius, float sigma_factor, float k) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

// Importing raggedbev._C loads the shared object, which runs the registrations; the module itself is empty.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
