#!/usr/bin/env bash
# certificates.sh FOLDER NAME...: a private authority, and a certificate of the server signed by it.
# NAMEs are what sites call the server: host names or IPv4 addresses. Sites need ca.crt alone.
. "$(dirname "$0")/environment.sh"
[ $# -ge 2 ] || refuse "give a folder and the server's names"
folder="$1"
shift
[ ! -e "$folder/ca.key" ] || refuse "$folder has an authority: remove it, and all sites need the new ca.crt"
mkdir -p "$folder"

names="DNS:localhost,IP:127.0.0.1"
for name in "$@"; do
  [[ "$name" =~ ^[0-9.]+$ ]] && names+=",IP:$name" || names+=",DNS:$name"
done
cd "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 3650 \
  -subj "/CN=affect authority" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout ca.key -out ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -subj "/CN=$1" \
  -keyout server.key -out server.csr 2>/dev/null
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 825 -out server.crt \
  -extfile <(echo "subjectAltName=$names
basicConstraints=critical,CA:FALSE
extendedKeyUsage=serverAuth") 2>/dev/null
rm -f server.csr ca.srl
chmod 644 ca.crt
echo "$folder: send ca.crt to each site; ca.key and server.key stay here"
