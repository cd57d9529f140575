/* A cable with a rate and a delay: passes frames between two TAP devices, each in a network namespace of its own.
 *
 *   relay NAMESPACE DEVICE NAMESPACE DEVICE BITS_PER_S DELAY_US
 *
 * In each direction a frame takes its bits at the rate, behind those before it, and then the delay. Nothing is lost
 * unless QUEUE frames are under way. Kernels without netem have no other way. Prints a line when it is ready. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define QUEUE 16384
#define FRAME 9216
#define HEADERS 24 /* of Ethernet around a frame: preamble, checksum, gap */

struct frame {
  int64_t due_ns;
  ssize_t length;
  char bytes[FRAME];
};

struct way {
  struct frame *frames;
  unsigned first, end; /* of those under way */
  int64_t free_ns;     /* when the last frame has left */
  int out;
};

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int tap(const char *namespace, const char *device) {
  int ns = open(namespace, O_RDONLY | O_CLOEXEC);
  if (ns < 0 || setns(ns, CLONE_NEWNET)) {
    perror(namespace);
    exit(1);
  }
  close(ns);
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  struct ifreq request;
  memset(&request, 0, sizeof request);
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  strncpy(request.ifr_name, device, IFNAMSIZ - 1);
  if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) {
    perror(device);
    exit(1);
  }
  return fd;
}

int main(int count, char **word) {
  if (count != 7) return 2;
  int fd[2] = {tap(word[1], word[2]), tap(word[3], word[4])};
  double ns_a_byte = 8e9 / atof(word[5]);
  int64_t delay_ns = (int64_t)(atof(word[6]) * 1e3);
  struct way ways[2];
  memset(ways, 0, sizeof ways);
  for (int i = 0; i < 2; i++) {
    ways[i].frames = malloc(sizeof(struct frame) * QUEUE);
    ways[i].out = fd[!i];
    if (!ways[i].frames) return 1;
  }
  puts("ready");
  fflush(stdout);
  for (;;) {
    int64_t next = -1;
    for (int i = 0; i < 2; i++) {
      struct way *w = &ways[i];
      while (w->first != w->end && w->frames[w->first % QUEUE].due_ns <= now_ns()) {
        struct frame *f = &w->frames[w->first++ % QUEUE];
        if (write(w->out, f->bytes, f->length) < 0 && errno != EIO && errno != EAGAIN) return 1; /* EIO: down */
      }
      if (w->first != w->end) {
        int64_t left = w->frames[w->first % QUEUE].due_ns - now_ns();
        if (left < 0) left = 0;
        if (next < 0 || left < next) next = left;
      }
    }
    struct pollfd poll_of[2] = {{fd[0], POLLIN, 0}, {fd[1], POLLIN, 0}};
    struct timespec wait = {next / 1000000000, next % 1000000000};
    if (ppoll(poll_of, 2, next < 0 ? NULL : &wait, NULL) <= 0) continue;
    for (int i = 0; i < 2; i++) {
      struct way *w = &ways[i];
      for (int k = 0; k < 64 && w->end - w->first < QUEUE; k++) {
        struct frame *f = &w->frames[w->end % QUEUE];
        f->length = read(fd[i], f->bytes, FRAME);
        if (f->length <= 0) break;
        int64_t now = now_ns();
        if (w->free_ns < now) w->free_ns = now;
        w->free_ns += (int64_t)((double)(f->length + HEADERS) * ns_a_byte);
        f->due_ns = w->free_ns + delay_ns;
        w->end++;
      }
    }
  }
}
