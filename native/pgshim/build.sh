#!/bin/sh
# Builds build/pgshim.so where there is no make: sh build.sh [compiler]. The Makefile is the reference for the flags.
set -eu
cd "$(dirname "$0")"
mkdir -p build
"${1:-cc}" -std=c11 -O2 -g -Wall -Wextra -fPIC -fvisibility=hidden -pthread -U_FORTIFY_SOURCE -shared -Wl,-z,defs \
    -o build/pgshim.so.new src/*.c -ldl -lpthread
mv -f build/pgshim.so.new build/pgshim.so
