#!/bin/sh
# Starts PostgreSQL on /data. Durability is switched off: what a test's database loses, nobody misses.
set -eu
bin=/usr/lib/postgresql/15/bin
data=/data/pgdata
user=${POSTGRES_USER:-postgres}
if [ ! -f "$data/ready" ]; then
    rm -rf "$data"
    printf %s "${POSTGRES_PASSWORD:?must be set}" >/tmp/password
    "$bin/initdb" -D "$data" -U "$user" --pwfile=/tmp/password -A scram-sha-256 -E UTF8 --locale=C.UTF-8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
    printf 'create database "%s";\n' "${POSTGRES_DB:-$user}" >/tmp/create.sql
    if [ "${POSTGRES_DB:-$user}" != postgres ]; then
        "$bin/postgres" --single -D "$data" postgres </tmp/create.sql >/dev/null
    fi
    rm /tmp/create.sql
    touch "$data/ready"
fi
exec "$bin/postgres" -D "$data" -k /tmp -c listen_addresses='*' -c fsync=off -c full_page_writes=off
