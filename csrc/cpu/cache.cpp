#include "cpu/cache.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fedclip::cpu {
namespace {

const std::string kProcessor = "/sys/devices/system/cpu/cpu0/";

std::string first_line(const std::string& path) {
    char line[256] = "";
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        if (!std::fgets(line, sizeof line, file)) line[0] = 0;
        std::fclose(file);
    }
    return std::string(line, std::strcspn(line, "\n"));
}

// How many processors a list like "0-3,8-11" names.
std::int64_t count_processors(const std::string& list) {
    std::int64_t count = 0;
    for (const char* at = list.c_str(); *at; at += *at == ',') {
        char* end = nullptr;
        const long first = std::strtol(at, &end, 10);
        if (end == at) break;
        const long last = *end == '-' ? std::strtol(end + 1, &end, 10) : first;
        count += std::max(last - first + 1, 1l);
        at = end;
    }
    return count;
}

// "512K" -> 524288.
std::int64_t parse_size(const std::string& text) {
    char* unit = nullptr;
    const std::int64_t size = std::strtol(text.c_str(), &unit, 10);
    return size << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : 0);
}

std::int64_t read_caches() {
    const std::int64_t threads = std::max<std::int64_t>(
        count_processors(first_line(kProcessor + "topology/thread_siblings_list")), 1);
    std::int64_t total = 0;
    for (int i = 0; i < 8; ++i) {
        const std::string cache = kProcessor + "cache/index" + std::to_string(i) + "/";
        const std::string level = first_line(cache + "level");
        if (level.empty()) break;
        if (level == "1") continue;
        const std::int64_t sharing =
            count_processors(first_line(cache + "shared_cpu_list"));
        const std::int64_t cores = std::max<std::int64_t>(sharing / threads, 1);
        total += parse_size(first_line(cache + "size")) / cores;
    }
    return total;
}

}  // namespace

std::int64_t cache_of_core() {
    static const std::int64_t bytes = read_caches();
    return bytes;
}

}  // namespace fedclip::cpu
