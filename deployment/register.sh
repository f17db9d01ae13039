#!/usr/bin/env bash
# register.sh KEY.pub NAME: lets a site in; `flwr supernode unregister NODE deployment` lets it out.
. "$(dirname "$0")/environment.sh"
[ $# -eq 2 ] || refuse "give the site's public key and its name"
need "$1"
exec flwr supernode register "$1" deployment --name "$2"
