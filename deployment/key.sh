#!/usr/bin/env bash
# key.sh FILE: the key by which a site is known. FILE stays at the site, FILE.pub goes to the server.
. "$(dirname "$0")/environment.sh"
[ $# -eq 1 ] || refuse "give the file of the key"
[ ! -e "$1" ] || refuse "$1 exists"
mkdir -p "$(dirname "$1")"
ssh-keygen -q -t ecdsa -b 384 -N "" -C "" -f "$1"
echo "send $1.pub to the server; $1 stays here"
