# A domain controller in namespaces of its own, until standard input ends. Runs as process 1 of a process namespace, so
# nothing that it starts can outlive it. Prints "ready" once logins work.
set -eu
folder=$1 realm=$2 domain=$3 administrator_password=$4
cd "$folder"

# Whoever provisions and serves is killed before the folder goes; kill spares process 1.
tidy() { trap - EXIT; kill -KILL -1 2>/dev/null || true; wait || true; cd /; rm -rf "$folder"; }
fail() { echo "$*"; cat provision.log samba.log users.log keytab.log 2>/dev/null | tail -n 40; exit 1; }
trap tidy EXIT

ip link set lo up
samba-tool domain provision --server-role=dc --use-rfc2307 --dns-backend=NONE --realm="$realm" --domain="$domain" \
    --host-name=dc1 --adminpass="$administrator_password" --targetdir="$folder/dc" \
    --option='interfaces=lo' --option='bind interfaces only=yes' --option="log file=$folder/samba.log" \
    >provision.log 2>&1 </dev/null || fail 'samba-tool cannot provision a domain'

samba -F --no-process-group -s "$folder/smb.conf" </dev/null >>samba.log 2>&1 &
samba=$!
export LDAPTLS_CACERT="$folder/ca.pem"
left=1200
# By address: these tools put the machine's own name in the place of localhost.
until ldapsearch -x -H ldaps://127.0.0.1 -b '' -s base >/dev/null 2>&1 </dev/null; do
    kill -0 "$samba" 2>/dev/null || fail 'samba ended'
    left=$((left - 1))
    [ "$left" -gt 0 ] || fail 'samba does not answer'
    sleep 0.05
done
ldapadd -x -H ldaps://127.0.0.1 -D "Administrator@$realm" -w "$administrator_password" -f users.ldif \
    >users.log 2>&1 </dev/null || fail 'the users cannot be added'
samba-tool domain exportkeytab "$folder/http.keytab" -s "$folder/smb.conf" --principal=HTTP/localhost \
    >keytab.log 2>&1 </dev/null || fail 'the keytab cannot be exported'
echo ready
# Until whoever started this is gone, however that ends.
cat >/dev/null
