#include "cpu/cache.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace fedclip::cpu {
namespace {

const std::string kProcessor = "/sys/devices/system/cpu/cpu0/";

std::string first_line(const std::string& path) {
    std::string line;
    std::ifstream file(path);
    std::getline(file, line);
    return line;
}

// How many processors a list like "0-3,8-11" names.
std::int64_t count_processors(const std::string& list) {
    std::int64_t count = 0;
    std::istringstream parts(list);
    for (std::string part; std::getline(parts, part, ',');) {
        std::istringstream range(part);
        std::int64_t first = 0, last = 0;
        char dash = 0;
        if (!(range >> first)) continue;
        last = range >> dash >> last ? last : first;
        count += std::max<std::int64_t>(last - first + 1, 1);
    }
    return count;
}

// "512K" -> 524288.
std::int64_t parse_size(const std::string& text) {
    std::istringstream stream(text);
    std::int64_t size = 0;
    char unit = 0;
    stream >> size >> unit;
    return size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
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
