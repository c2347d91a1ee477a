package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc"
)

// provider is a company that runs PostgreSQL for others. It is recognized by a role that it creates on each server.
type provider struct {
	role    string
	name    string
	logical string // how to set wal_level to logical there
}

const fromTheStart = "wal_level is always logical there: ask its support"

// providers lists the providers by their roles; if two match, the first counts.
var providers = []provider{
	{"rds_superuser", "Amazon RDS or Aurora", "set rds.logical_replication to 1 in the parameter group (of Aurora, the cluster's), and reboot"},
	{"cloudsqlsuperuser", "Google Cloud SQL", "set the flag cloudsql.logical_decoding to on, which restarts the server"},
	{"alloydbsuperuser", "Google AlloyDB", "set the flag alloydb.logical_decoding to on, which restarts the server"},
	{"azure_pg_admin", "Azure Database for PostgreSQL", "set the server parameter wal_level to logical, and restart the server"},
	{"neon_superuser", "Neon", "switch on logical replication in the project's settings, which restarts its computes"},
	{"supabase_admin", "Supabase", fromTheStart},
	{"crunchy_superuser", "Crunchy Bridge", "set wal_level to logical in the cluster's configuration, and restart it"},
	{"tsdbadmin", "Tiger Cloud (Timescale)", fromTheStart},
	{"doadmin", "DigitalOcean", fromTheStart},
	{"avnadmin", "Aiven", fromTheStart},
	{"mdb_admin", "Yandex Managed Service for PostgreSQL", fromTheStart},
}

// replicators lists roles whose members may replicate on servers where no role can give the attribute REPLICATION, in
// the order in which init looks for one to grant.
var replicators = []string{"rds_replication", "mdb_replication", "rds_superuser"}

// mayReplicate is SQL for whether a role r of pg_roles may replicate. A member may, whether it inherits or not: the
// provider's server checks the membership.
var mayReplicate = `(r.rolreplication OR r.rolsuper OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname IN ('` + strings.Join(replicators, "', '") + `') AND pg_has_role(r.oid, g.oid, 'MEMBER')))`

// guard describes what a server allows the role of this connection.
type guard struct {
	me           string // the role of this connection
	super        bool
	mayReplicate bool
	provider     *provider // nil for a server without a provider
	replicator   string    // role whose members may replicate; empty if REPLICATION can be given
	ready        []string  // roles that may log in and replicate, without being a superuser
}

func readGuard(ctx context.Context, conn *pgx.Conn) (g guard, err error) {
	var marks []string
	for _, p := range providers {
		marks = append(marks, p.role)
	}
	var there []string
	err = conn.QueryRow(ctx, `
		SELECT r.rolname, r.rolsuper, `+mayReplicate+`,
		       ARRAY(SELECT rolname::text FROM pg_roles WHERE rolname = ANY($1)),
		       ARRAY(SELECT rolname::text FROM pg_roles WHERE rolreplication AND rolcanlogin AND NOT rolsuper ORDER BY rolname = session_user DESC, 1 LIMIT 3)
		FROM pg_roles r WHERE r.rolname = session_user`, slices.Concat(marks, replicators)).Scan(&g.me, &g.super, &g.mayReplicate, &there, &g.ready)
	if err != nil {
		return g, classify("look at the server's roles", err)
	}
	for i := range providers {
		if g.provider == nil && slices.Contains(there, providers[i].role) {
			g.provider = &providers[i]
		}
	}
	// A server with a superuser gives the attribute: a provider's role on it came with a dump, and its members have
	// no rights.
	for _, r := range replicators[:2] {
		if g.replicator == "" && !g.super && slices.Contains(there, r) {
			g.replicator = r
		}
	}
	return g, nil
}

// notLogical returns the problem of a wal_level, with how to change it on this server.
func (g *guard) notLogical(is string) cdc.Finding {
	run := "ALTER SYSTEM SET wal_level = 'logical' and restart PostgreSQL"
	if g.provider != nil {
		run = fmt.Sprintf("this is %s: %s", g.provider.name, g.provider.logical)
	}
	return Problem("wal_level", run, "wal_level is %s", is)
}

// letReplicate returns the SQL that gives a role the right to replicate.
func (g *guard) letReplicate(role string) string {
	role = Ident(role)
	if g.replicator != "" {
		return fmt.Sprintf("GRANT %s TO %s", g.replicator, role)
	}
	return fmt.Sprintf("ALTER ROLE %s REPLICATION", role)
}

// wayOut returns what to do if the administrator may not create a role that replicates.
func (g *guard) wayOut(role string) string {
	whose := ""
	if g.provider != nil {
		whose = " on " + g.provider.name
	}
	way := fmt.Sprintf("role %s of %s may not give that right%s: let a role that may run the SQL above", g.me, adminURL, whose)
	if i := slices.Index(g.ready, role); len(g.ready) > 0 && i < 0 {
		way += ", or name a role in source.url that has it already (" + strings.Join(g.ready, ", ") + ")"
	}
	return way + "; source.kind: polling needs no such right"
}

// privileges returns what the administrator lacks to create the table, or to change or publish the one with the oid,
// each with the SQL that grants it.
func (a *Admin) privileges(ctx context.Context, oid uint32, changes, publishes bool) (lacks []string, err error) {
	cfg := a.source.cfg
	schema, _ := cfg.SchemaTable()
	var me, database, owner string
	var inDatabase, owns bool
	var schemaLacks *string // nil if there is no such schema
	err = a.conn.QueryRow(ctx, `
		SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE'),
		       (SELECT concat_ws(', ', CASE WHEN NOT has_schema_privilege(oid, 'CREATE') THEN 'CREATE' END,
		                               CASE WHEN NOT has_schema_privilege(oid, 'USAGE') THEN 'USAGE' END) FROM pg_namespace WHERE nspname = $1),
		       coalesce((SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = $2), ''),
		       coalesce((SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = $2), true)`, schema, oid).
		Scan(&me, &database, &inDatabase, &schemaLacks, &owner, &owns)
	if err != nil {
		return nil, classify("look at the administrator's rights", err)
	}
	if oid == 0 {
		switch {
		case schemaLacks == nil:
			lacks = append(lacks, fmt.Sprintf("source.table: there is no schema %s: CREATE SCHEMA %s", schema, Ident(schema)))
		case *schemaLacks != "":
			lacks = append(lacks, fmt.Sprintf("role %s may not create %s: GRANT %s ON SCHEMA %s TO %s", me, cfg.Table, *schemaLacks, Ident(schema), Ident(me)))
		}
	}
	if publishes && !inDatabase {
		lacks = append(lacks, fmt.Sprintf("role %s may not create a publication: GRANT CREATE ON DATABASE %s TO %s", me, Ident(database), Ident(me)))
	}
	if (changes || publishes) && !owns {
		lacks = append(lacks, fmt.Sprintf("role %s does not own %s, and only the owner may change or publish it: run init as role %s, or GRANT %s TO %s", me, cfg.Table, owner, Ident(owner), Ident(me)))
	}
	return lacks, nil
}

// errForbidden returns the error for a plan that the administrator may not run. Nothing was changed.
func errForbidden(lacks []string) error {
	return errors.New(strings.Join(lacks, "\n") + "\nnothing was changed in PostgreSQL")
}
