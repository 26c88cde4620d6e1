/*
 * What the kernel's part of the tools' work costs, with nothing around it: no format, no language, no start of a runtime.
 * `npm run bench:tools` compiles it where there is a C compiler, and measures it beside the tools.
 *
 * copy FROM TO     reads FROM and writes a new file, 256 KiB at a time (the cheapest size where a processor's cache holds it)
 * onto FROM TO     as copy, into a file that is there and stays as long as it is, and makes the disk have it
 * fresh FROM TO    as copy, and makes the disk have it
 * compare ONE TWO  reads both and compares
 * read FILE        reads
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 256 * 1024 };

static int fail(const char *what) {
  perror(what);
  return 1;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  const char *mode = argv[1];
  const int moves = strcmp(mode, "read") != 0 && strcmp(mode, "compare") != 0;
  const int from = open(argv[2], O_RDONLY);
  const int to = argc > 3 ? open(argv[3], moves ? O_RDWR | O_CREAT : O_RDONLY, 0644) : -1;
  struct stat stat;
  char *one = aligned_alloc(4096, PIECE);
  char *two = aligned_alloc(4096, PIECE);
  if (from < 0 || (argc > 3 && to < 0) || fstat(from, &stat) < 0) return fail("open");
  const int isNew = strcmp(mode, "copy") == 0 || strcmp(mode, "fresh") == 0;
  if (isNew && ftruncate(to, stat.st_size) < 0) return fail("ftruncate");
  for (off_t at = 0; at < stat.st_size; at += PIECE) {
    const ssize_t bytes = pread(from, one, PIECE, at);
    if (bytes < 0) return fail("pread");
    if (moves && pwrite(to, one, bytes, at) != bytes) return fail("pwrite");
    if (moves || to < 0) continue;
    const ssize_t other = pread(to, two, bytes, at);
    if (other < 0) return fail("pread");
    if (memcmp(one, two, other) != 0) return 3;
  }
  if (moves && strcmp(mode, "copy") != 0 && fdatasync(to) < 0) return fail("fdatasync");
  return 0;
}
