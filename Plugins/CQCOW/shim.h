/* SPDX-License-Identifier: BSD-2-Clause
 * libqcow, zlib and zstd for Swift: the calls that the QCOW plugin makes, with what C macros and opaque error objects would
 * make long there. */
#ifndef CQCOW_SHIM_H
#define CQCOW_SHIM_H

#include <libqcow.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
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
