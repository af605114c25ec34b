/* SPDX-License-Identifier: BSD-2-Clause
 * libqcow, zlib and zstd for Swift: the calls that the QCOW plugin makes, with what C macros and opaque error objects would
 * make long there. */
#ifndef CQCOW_SHIM_H
#define CQCOW_SHIM_H

#include <errno.h>
#include <libqcow.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

/* The first line of what libqcow says, then its error object is gone. */
static inline void cqcow_take_error(libqcow_error_t *error, char *text, size_t size)
{
    if (size == 0) return;
    text[0] = 0;
    if (!error) return;
    if (libqcow_error_sprint(error, text, size) < 0) text[0] = 0;
    text[size - 1] = 0;
    text[strcspn(text, "\r\n")] = 0;
    libqcow_error_free(&error);
}

/* Opens the image at `path` for reading with the 16 bytes of an AES key. NULL with libqcow's words in `text`.
 * `parent`, or NULL: libqcow reads nothing of an image that names a backing file before it has been given one. */
static inline libqcow_file_t *cqcow_open(const char *path, const uint8_t *key, libqcow_file_t *parent, char *text,
                                         size_t size)
{
    libqcow_file_t *file = NULL;
    libqcow_error_t *error = NULL;
    if (libqcow_file_initialize(&file, &error) == 1 && libqcow_file_set_keys(file, key, 16, &error) == 1
        && libqcow_file_open(file, path, libqcow_get_access_flags_read(), &error) == 1
        && (!parent || libqcow_file_set_parent_file(file, parent, &error) == 1))
        return file;
    cqcow_take_error(error, text, size);
    if (file) libqcow_file_free(&file, NULL);
    return NULL;
}

static inline void cqcow_close(libqcow_file_t *file)
{
    libqcow_file_close(file, NULL);
    libqcow_file_free(&file, NULL);
}

/* The bytes read, or -1 with libqcow's words in `text`. Any thread; calls for one file wait for each other. */
static inline int64_t cqcow_read(libqcow_file_t *file, void *buffer, size_t length, uint64_t offset, char *text,
                                 size_t size)
{
    libqcow_error_t *error = NULL;
    ssize_t count = libqcow_file_read_buffer_at_offset(file, buffer, length, (off64_t)offset, &error);
    if (count < 0) cqcow_take_error(error, text, size);
    else if (error) libqcow_error_free(&error);
    return count;
}

/* libqcow over a file that is open already, for a process that cannot open files by name. libqcow carries libbfio, whose
 * functions it exports and whose header its package does not have; without them cqcow_open_descriptor() gives NULL.
 * libbfio.h, libbfio_handle_initialize; libqcow.h, libqcow_file_open_file_io_handle. */
typedef intptr_t cqcow_io;
extern int libbfio_handle_initialize(
    cqcow_io **handle, intptr_t *io, int (*free_io)(intptr_t **, libqcow_error_t **),
    int (*clone_io)(intptr_t **, intptr_t *, libqcow_error_t **), int (*open_io)(intptr_t *, int, libqcow_error_t **),
    int (*close_io)(intptr_t *, libqcow_error_t **),
    ssize_t (*read_io)(intptr_t *, uint8_t *, size_t, libqcow_error_t **),
    ssize_t (*write_io)(intptr_t *, const uint8_t *, size_t, libqcow_error_t **),
    off64_t (*seek_io)(intptr_t *, off64_t, int, libqcow_error_t **), int (*exists_io)(intptr_t *, libqcow_error_t **),
    int (*is_open_io)(intptr_t *, libqcow_error_t **), int (*size_io)(intptr_t *, size64_t *, libqcow_error_t **),
    uint8_t flags, libqcow_error_t **error) __attribute__((weak));
extern int libbfio_handle_free(cqcow_io **handle, libqcow_error_t **error) __attribute__((weak));
extern int libqcow_file_open_file_io_handle(libqcow_file_t *file, cqcow_io *handle, int flags, libqcow_error_t **error);

/* What libbfio asks about: a descriptor, which stays the caller's, and the place where the next read begins. */
struct cqcow_descriptor { off64_t position, size; int fd; };

static inline int cqcow_io_free(intptr_t **io, libqcow_error_t **error)
{
    (void)error;
    free(*io);
    *io = NULL;
    return 1;
}
static inline int cqcow_io_clone(intptr_t **to, intptr_t *from, libqcow_error_t **error)
{
    (void)error;
    struct cqcow_descriptor *copy = (struct cqcow_descriptor *)malloc(sizeof *copy);
    if (!copy) return -1;
    *copy = *(struct cqcow_descriptor *)from;
    *to = (intptr_t *)copy;
    return 1;
}
static inline int cqcow_io_open(intptr_t *io, int flags, libqcow_error_t **error)
{
    (void)error;
    ((struct cqcow_descriptor *)io)->position = 0;
    return flags & 2 ? -1 : 1; /* LIBBFIO_ACCESS_FLAG_WRITE */
}
static inline int cqcow_io_close(intptr_t *io, libqcow_error_t **error) { (void)io; (void)error; return 0; }
static inline ssize_t cqcow_io_read(intptr_t *io, uint8_t *buffer, size_t size, libqcow_error_t **error)
{
    (void)error;
    struct cqcow_descriptor *file = (struct cqcow_descriptor *)io;
    size_t done = 0;
    while (done < size) {
        ssize_t count = pread(file->fd, buffer + done, size - done, file->position);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -1;
        if (count == 0) break;
        done += (size_t)count;
        file->position += count;
    }
    return (ssize_t)done;
}
static inline ssize_t cqcow_io_write(intptr_t *io, const uint8_t *buffer, size_t size, libqcow_error_t **error)
{
    (void)io; (void)buffer; (void)size; (void)error;
    return -1;
}
static inline off64_t cqcow_io_seek(intptr_t *io, off64_t offset, int whence, libqcow_error_t **error)
{
    (void)error;
    struct cqcow_descriptor *file = (struct cqcow_descriptor *)io;
    off64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? file->position : file->size, place = 0;
    if (__builtin_add_overflow(base, offset, &place) || place < 0) return -1;
    return file->position = place;
}
static inline int cqcow_io_exists(intptr_t *io, libqcow_error_t **error) { (void)io; (void)error; return 1; }
static inline int cqcow_io_is_open(intptr_t *io, libqcow_error_t **error) { (void)io; (void)error; return 1; }
static inline int cqcow_io_size(intptr_t *io, size64_t *size, libqcow_error_t **error)
{
    (void)error;
    *size = (size64_t)((struct cqcow_descriptor *)io)->size;
    return 1;
}

/* An image and the handle below it, which libqcow leaves to its caller. */
struct cqcow_image { libqcow_file_t *file; cqcow_io *io; };

static inline void cqcow_close_image(struct cqcow_image *image)
{
    if (image->file) {
        libqcow_file_close(image->file, NULL);
        libqcow_file_free(&image->file, NULL);
    }
    if (image->io) libbfio_handle_free(&image->io, NULL);
}

/* Opens the image in the file of `size` bytes at `fd` for reading; close it with cqcow_close_image(). 0 with libqcow's words in
 * `text`. `parent` is as for cqcow_open(). */
static inline int cqcow_open_descriptor(struct cqcow_image *image, int fd, uint64_t size, libqcow_file_t *parent, char *text,
                                        size_t room)
{
    libqcow_error_t *error = NULL;
    image->file = NULL;
    image->io = NULL;
    struct cqcow_descriptor *io = (struct cqcow_descriptor *)calloc(1, sizeof *io);
    if (!io || !libbfio_handle_initialize || !libbfio_handle_free) {
        free(io);
        if (room > 0) text[0] = 0;
        return 0;
    }
    io->fd = fd;
    io->size = (off64_t)size;
    /* 1: the handle owns `io` and frees it. */
    if (libbfio_handle_initialize(&image->io, (intptr_t *)io, cqcow_io_free, cqcow_io_clone, cqcow_io_open, cqcow_io_close,
                                  cqcow_io_read, cqcow_io_write, cqcow_io_seek, cqcow_io_exists, cqcow_io_is_open,
                                  cqcow_io_size, 1, &error) != 1) {
        free(io);
        image->io = NULL;
    } else if (libqcow_file_initialize(&image->file, &error) == 1
               && libqcow_file_open_file_io_handle(image->file, image->io, libqcow_get_access_flags_read(), &error) == 1
               && (!parent || libqcow_file_set_parent_file(image->file, parent, &error) == 1)) {
        return 1;
    }
    cqcow_take_error(error, text, room);
    cqcow_close_image(image);
    return 0;
}

/* Bytes of the disk, or 0. */
static inline uint64_t cqcow_disk_size(libqcow_file_t *file)
{
    size64_t size = 0;
    return libqcow_file_get_media_size(file, &size, NULL) == 1 ? (uint64_t)size : 0;
}

/* An inflater for the raw deflate streams of QCOW: a window of 4 KiB, no header. NULL: no memory. */
static inline z_stream *cqcow_inflater(void)
{
    z_stream *stream = (z_stream *)calloc(1, sizeof *stream);
    if (stream && inflateInit2(stream, -12) != Z_OK) {
        free(stream);
        stream = NULL;
    }
    return stream;
}

static inline void cqcow_inflater_free(z_stream *stream)
{
    if (stream) inflateEnd(stream);
    free(stream);
}

/* True if the stream at `input` gives `room` bytes or more; what follows its end is not looked at. */
static inline int cqcow_inflate(z_stream *stream, const void *input, size_t length, void *output, size_t room)
{
    if (length > UINT32_MAX || room > UINT32_MAX || inflateReset(stream) != Z_OK) return 0;
    stream->next_in = (unsigned char *)(uintptr_t)input;
    stream->avail_in = (unsigned)length;
    stream->next_out = (unsigned char *)output;
    stream->avail_out = (unsigned)room;
    int result = inflate(stream, Z_FINISH);
    return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream->avail_out == 0;
}

/* A decompressor for the zstd frames of QCOW. A frame may want no more memory than a cluster of 2 MiB needs. NULL: no memory. */
static inline ZSTD_DCtx *cqcow_decompressor(void)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (context && ZSTD_isError(ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, 22))) {
        ZSTD_freeDCtx(context);
        context = NULL;
    }
    return context;
}

static inline void cqcow_decompressor_free(ZSTD_DCtx *context) { ZSTD_freeDCtx(context); }

/* True if the frames at `input` give `room` bytes or more; what follows is not looked at. */
static inline int cqcow_decompress(ZSTD_DCtx *context, const void *input, size_t length, void *output, size_t room)
{
    ZSTD_inBuffer in = {input, length, 0};
    ZSTD_outBuffer out = {output, room, 0};
    ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
    while (out.pos < out.size) {
        size_t before_in = in.pos, before_out = out.pos;
        if (ZSTD_isError(ZSTD_decompressStream(context, &out, &in))) return 0;
        if (in.pos == before_in && out.pos == before_out) return 0; /* cut off */
    }
    return 1;
}

#endif
