// What a team must know of forks.
#include "cpu/team.h"

#include <c10/util/Exception.h>
#include <pthread.h>

namespace dnirnn::cpu {
namespace {

bool forked = false;  // written by a child's only thread, before anything else runs in it

// As the library is loaded: the pool may be torch's own doing, before the first team here.
const bool watched = [] {
  TORCH_CHECK(pthread_atfork(nullptr, nullptr, [] { forked = true; }) == 0, "out of memory");
  return true;
}();

}  // namespace

bool is_forked() { return forked; }

}  // namespace dnirnn::cpu
