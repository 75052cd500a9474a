#!/bin/sh
# Builds build/keyguard.so where there is no make: sh build.sh [compiler]. The Makefile is the reference for the flags.
set -eu
cd "$(dirname "$0")"
mkdir -p build
"${1:-cc}" -std=c11 -O2 -g -Wall -Wextra -fPIC -fvisibility=hidden -shared -Wl,-z,defs -o build/keyguard.so.new src/keyguard.c
mv -f build/keyguard.so.new build/keyguard.so
