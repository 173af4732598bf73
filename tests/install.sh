#!/bin/sh
# Installs into a temporary directory and builds examples/embed.cpp against it in both ways, with pkg-config and with
# CMake's find_package. Usage: tests/install.sh BUILD_DIR
set -eu
build=$1
where=$(mktemp -d)
trap 'rm -rf "$where"' EXIT
make --no-print-directory BUILD="$build" PREFIX="$where/usr" install >"$where/log" 2>&1 || { cat "$where/log"; exit 1; }

PKG_CONFIG_PATH="$where/usr/lib/pkgconfig" pkg-config --exists awq
c++ -std=c++17 examples/embed.cpp $(PKG_CONFIG_PATH="$where/usr/lib/pkgconfig" pkg-config --cflags --libs awq) ${LDFLAGS:-} -o "$where/embed1"

mkdir "$where/project"
cp examples/embed.cpp "$where/project/"
cat >"$where/project/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.16)
project(user LANGUAGES CXX)
find_package(awq REQUIRED)
add_executable(embed embed.cpp)
target_link_libraries(embed PRIVATE awq::awq)
CMAKE
cmake -S "$where/project" -B "$where/project/build" -DCMAKE_PREFIX_PATH="$where/usr" ${LDFLAGS:+-DCMAKE_EXE_LINKER_FLAGS="$LDFLAGS"} >"$where/log" 2>&1 &&
    cmake --build "$where/project/build" >>"$where/log" 2>&1 || { cat "$where/log"; exit 1; }

for program in "$where/embed1" "$where/project/build/embed" "$where/usr/bin/awq"; do
    status=0
    "$program" >"$where/log" 2>&1 || status=$?
    [ "$status" = 2 ] || { echo "install test: $program exited with $status; expected 2 (usage)"; cat "$where/log"; exit 1; }
done
echo "install test: the installed library links by pkg-config and by CMake"
