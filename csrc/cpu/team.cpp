// What a team must know of forks.
#include "cpu/team.h"

#include <c10/util/Exception.h>
#include <pthread.h>

namespace dnirnn::cpu {
namespace {

bool forked = false;  // written by a child's only thread, before anything else runs in it

}  // namespace

bool forked_from_team() { return forked; }

void watch_for_forks() {
  static const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  TORCH_CHECK(watched == 0, "pthread_atfork: out of memory");
}

}  // namespace dnirnn::cpu
