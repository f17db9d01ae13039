#!/usr/bin/env bash
# site.sh NAME CACHE STATE SOCKET [OPTION...]: holds a site's recordings and answers at SOCKET.
# The only process at a site that reads recordings; it needs no network. See `affect site --help`.
. "$(dirname "$0")/environment.sh"
[ $# -ge 4 ] || refuse "give the site's name, its cache, a folder for states and a socket"
exec affect site --name "$1" --cache "$2" --state "$3" --socket "$4" "${@:5}"
