/* SPDX-License-Identifier: BSD-2-Clause */
#include "xlconfig.h"
#include <libxlutil.h>
#include <stdio.h>

static void copy(char *to, size_t size, const char *from) { snprintf(to, size, "%s", from ? from : ""); }

int xlconfig_disks(const char *text, size_t length, struct xlconfig_disk *disks, int most)
{
    XLU_Config *config = xlu_cfg_init(stderr, "config");
    XLU_ConfigList *list;
    int count = -1;

    if (!config) return -1;
    if (xlu_cfg_readdata(config, text, (int)length) == 0 && xlu_cfg_get_list(config, "disk", &list, &count, 0) == 0) {
        for (int i = 0; i < count; i++) {
            const char *item = xlu_cfg_get_listitem(list, i);
            libxl_device_disk disk;
            libxl_device_disk_init(&disk);
            if (!item || xlu_disk_parse(config, 1, &item, &disk) != 0) {
                count = -1;
                break;
            }
            if (i < most) {
                copy(disks[i].format, sizeof disks[i].format, libxl_disk_format_to_string(disk.format));
                copy(disks[i].backend, sizeof disks[i].backend, libxl_disk_backend_to_string(disk.backend));
                copy(disks[i].script, sizeof disks[i].script, disk.script);
                copy(disks[i].vdev, sizeof disks[i].vdev, disk.vdev);
                copy(disks[i].target, sizeof disks[i].target, disk.pdev_path);
                copy(disks[i].backend_domain, sizeof disks[i].backend_domain, disk.backend_domname);
                disks[i].writable = disk.readwrite;
                disks[i].is_cdrom = disk.is_cdrom;
            }
            libxl_device_disk_dispose(&disk);
        }
    }
    xlu_cfg_destroy(config);
    return count;
}
