# Sourced before each mutant, as root on the server.
set -e
# The master.cf entry of a port, whatever its service is called.
service() { for name in "$1" $(getent services "$1/tcp" | awk '{print $1, $3}'); do postconf -M "$name/inet" 2>/dev/null | grep -q . && { echo "$name/inet"; return; }; done; echo "no service on port $1" >&2; return 1; }
pp() { entry=$(service "$1"); shift; for setting; do postconf -P "$entry/$setting"; done; }
pc() { postconf -e "$@"; }
# Edits dovecot.conf, and fails when nothing in it was found to change.
dov() { before=$(cksum </etc/dovecot/dovecot.conf); sed -i -E "$1" /etc/dovecot/dovecot.conf; test "$before" != "$(cksum </etc/dovecot/dovecot.conf)"; }
usecert() { postconf -e "smtpd_tls_chain_files=$CERTS/$1.key,$CERTS/$1-chain.pem"; }
rebind() { entry=$(service "$1"); line=$(postconf -M "$entry"); postconf -M# "$entry"; postconf -Me "$2/inet=$2 ${line#* }"; }
