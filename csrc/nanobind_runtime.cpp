// nanobind's runtime, compiled as one file of this extension. Listing its own path among the sources would leave build
// folders named after that path.
#include <nb_combined.cpp>
