// SPDX-License-Identifier: BSD-2-Clause
// Plugins and open disks.
#include "internal.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct harness_plugin *harness_plugin(const struct xbb_plugin *table)
{
    struct harness_plugin *plugin = harness_immortal(sizeof *plugin);
    plugin->table = table;
    return plugin;
}

const struct xbb_plugin *harness_table(const struct harness_plugin *plugin) { return plugin->table; }

struct harness_plugin *harness_load(const char *path, const char *name, char *error)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const struct xbb_plugin *(*entry)(void) = NULL;
    if (library) *(void **)&entry = dlsym(library, XBB_PLUGIN_ENTRY);
    const struct xbb_plugin *table = entry ? entry() : NULL;
    if (table && table->abi_major == XBB_ABI_MAJOR && strcmp(table->name, name) == 0 &&
        (!table->load || table->load(harness_host()) == 0))
        return harness_plugin(table);
    snprintf(error, 256, "%s cannot be used as plugin %s: %s", path, name, library ? "see xbb-plugin-check" : dlerror());
    return NULL;
}

int harness_prepare(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                    const char *format, const char *location, struct harness_disk **out, struct xbb_error *error)
{
    struct harness_disk *disk = harness_immortal(sizeof *disk);
    disk->plugin = plugin->table;
    pthread_mutex_init(&disk->hdev.lock, NULL);
    struct xbb_open o = {
        .struct_size = sizeof o, .flags = flags, .hdev = &disk->hdev, .fd = fd,
        .option_count = plugin->table->option_count, .options = values,
        .format = format ? format : plugin->table->formats[0], .label = "disk under test",
        .location = fd >= 0 ? NULL : location ? location : "",
    };
    int status = disk->plugin->open(&o, &disk->dev, error);
    disk->hdev.phase = status == 0 ? OPEN : CLOSED;
    if (status == 0) *out = disk;
    return status;
}

int harness_start(struct harness_disk *disk, struct xbb_error *error)
{
    int status = XBB_CAN(disk->plugin, start) ? disk->plugin->start(disk->dev, error) : 0;
    if (status != 0) harness_close(disk);
    return status;
}

int harness_open(struct harness_plugin *plugin, int fd, uint32_t flags, const struct xbb_value *values,
                 struct harness_disk **out, struct xbb_error *error)
{
    int status = harness_prepare(plugin, fd, flags, values, NULL, NULL, out, error);
    return status == 0 ? harness_start(*out, error) : status;
}

void harness_close(struct harness_disk *disk)
{
    disk->hdev.phase = CLOSING;
    disk->plugin->close(disk->dev);
    disk->hdev.phase = CLOSED;
}

int harness_info(struct harness_disk *disk, struct xbb_info *info)
{
    memset(info, 0, sizeof *info);
    info->struct_size = sizeof *info;
    return disk->plugin->get_info(disk->dev, info);
}

int harness_resize(struct harness_disk *disk, uint64_t size, struct xbb_error *error)
{
    return XBB_CAN(disk->plugin, resize) ? disk->plugin->resize(disk->dev, size, error) : -ENOSYS;
}

int harness_drain_begin(struct harness_disk *disk)
{
    return XBB_CAN(disk->plugin, drain_begin) ? disk->plugin->drain_begin(disk->dev) : 0;
}

void harness_drain_end(struct harness_disk *disk)
{
    if (XBB_CAN(disk->plugin, drain_end)) disk->plugin->drain_end(disk->dev);
}

struct wanted { const char *name; uint64_t value; };
static void take_stat(void *arg, const char *name, uint64_t value)
{
    struct wanted *wanted = arg;
    if (!strcmp(name, wanted->name)) wanted->value = value;
}

uint64_t harness_stat(struct harness_disk *disk, const char *name)
{
    struct wanted wanted = {name, UINT64_MAX};
    if (XBB_CAN(disk->plugin, stats)) disk->plugin->stats(disk->dev, take_stat, &wanted);
    return wanted.value;
}

uint32_t harness_notified(struct harness_disk *disk, uint32_t what)
{
    pthread_mutex_lock(&disk->hdev.lock);
    uint32_t count = what < 8 ? disk->hdev.notified[what] : 0;
    pthread_mutex_unlock(&disk->hdev.lock);
    return count;
}

uint32_t harness_breaches(struct harness_disk *disk)
{
    pthread_mutex_lock(&disk->hdev.lock);
    uint32_t count = disk->hdev.breaches;
    pthread_mutex_unlock(&disk->hdev.lock);
    return count;
}

void harness_log(struct harness_disk *disk, char *text, uint64_t size)
{
    pthread_mutex_lock(&disk->hdev.lock);
    snprintf(text, size, "%s", disk->hdev.log);
    pthread_mutex_unlock(&disk->hdev.lock);
}

struct extents { uint64_t *triples; int room, count; };
static int take_extent(void *arg, uint64_t offset, uint64_t length, uint32_t flags)
{
    struct extents *e = arg;
    if (e->count == e->room) return 1;
    uint64_t *triple = e->triples + 3 * e->count++;
    triple[0] = offset, triple[1] = length, triple[2] = flags;
    return 0;
}

int harness_extents(struct harness_disk *disk, uint64_t offset, uint64_t length, uint64_t *triples, int room)
{
    struct extents e = {triples, room, 0};
    if (!XBB_CAN(disk->plugin, extents)) return -ENOSYS;
    int status = disk->plugin->extents(disk->dev, offset, length, take_extent, &e, NULL);
    return status < 0 ? status : e.count;
}
