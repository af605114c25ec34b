// SPDX-License-Identifier: BSD-2-Clause
// Prints how many nanoseconds of processor time a domain has had, all of its virtual processors and what Xen did for them together.
#include <stdio.h>
#include <stdlib.h>
#include <xenctrl.h>

int main(int count, char **arguments)
{
    xc_domaininfo_t info;
    uint32_t domain = count == 2 ? (uint32_t)strtoul(arguments[1], NULL, 10) : 0;
    xc_interface *xen = xc_interface_open(NULL, NULL, 0);
    if (!xen || xc_domain_getinfolist(xen, domain, 1, &info) != 1 || info.domain != domain) {
        perror("domain-time");
        return 1;
    }
    printf("%llu\n", (unsigned long long)info.cpu_time);
    return 0;
}
