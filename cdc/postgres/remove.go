package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/walpost/walpost/cdc/config"
)

// Removal returns the steps that remove publication and role, as far as nothing else uses them. For an object that
// stays it returns a step without SQL that names its users. Slot and state have their own steps; the table stays.
func (a *Admin) Removal(ctx context.Context) ([]Step, error) {
	cfg := a.source.cfg
	target, err := a.source.target()
	if err != nil {
		return nil, err
	}
	var steps []Step
	if cfg.Kind == config.KindWAL {
		step, err := a.removePublication(ctx)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	step, err := a.removeRole(ctx, target.User)
	if err != nil {
		return nil, err
	}
	return append(steps, step), nil
}

// removePublication drops the publication, unless another slot of the database may be read with it or it carries
// other tables. The server does not record with which publication a slot is read.
func (a *Admin) removePublication(ctx context.Context) (Step, error) {
	cfg := a.source.cfg
	name := Ident(cfg.Publication)
	schema, table := cfg.SchemaTable()
	var exists bool
	var slots, tables []string
	err := a.conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
		       ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput' AND slot_name <> $2 ORDER BY 1),
		       ARRAY(SELECT format('%s.%s', schemaname, tablename) FROM pg_publication_tables
		             WHERE pubname = $1 AND (schemaname, tablename) IS DISTINCT FROM ($3, $4) ORDER BY 1)`,
		cfg.Publication, cfg.Slot, schema, table).Scan(&exists, &slots, &tables)
	switch {
	case err != nil:
		return Step{}, classify("look who else uses the publication", err)
	case !exists:
		return Step{What: fmt.Sprintf("publication %s: not there", cfg.Publication)}, nil
	case len(slots) > 0:
		return Step{What: fmt.Sprintf("publication %s: not dropped: slot %s of this database may be read with it (if not: DROP PUBLICATION %s)", cfg.Publication, some(slots), name)}, nil
	case len(tables) > 0:
		return Step{What: fmt.Sprintf("publication %s: not dropped: it also carries %s (if nothing needs that: DROP PUBLICATION %s)", cfg.Publication, some(tables), name)}, nil
	}
	return Step{What: fmt.Sprintf("publication %s: drop it", cfg.Publication), SQL: []string{"DROP PUBLICATION " + name}}, nil
}

// removeRole drops the relay's role, unless another slot, session, grant or object of the server may need it.
func (a *Admin) removeRole(ctx context.Context, role string) (Step, error) {
	cfg := a.source.cfg
	user := Ident(role)
	var super, me bool
	var slots, sessions, members []string
	var objects int
	// A slot does not record its role: every other pgoutput slot, in any database, may be read with this role. Rights
	// on the outbox and its schema are this pipeline's and are revoked.
	err := a.conn.QueryRow(ctx, `
		SELECT r.rolsuper, r.rolname = current_user,
		       ARRAY(SELECT format('%s (database %s)', slot_name, database) FROM pg_replication_slots WHERE plugin = 'pgoutput' AND slot_name <> $2 ORDER BY 1),
		       ARRAY(SELECT DISTINCT coalesce(nullif(application_name, ''), 'pid ' || pid) FROM pg_stat_activity WHERE usesysid = r.oid AND application_name <> $3 ORDER BY 1),
		       ARRAY(SELECT member::regrole::text FROM pg_auth_members WHERE roleid = r.oid AND member <> (SELECT oid FROM pg_roles WHERE rolname = current_user) ORDER BY 1),
		       (SELECT count(*) FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid
		          AND NOT (d.deptype = 'a' AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
		                   AND (d.classid = 'pg_class'::regclass AND d.objid = to_regclass($4) OR d.classid = 'pg_namespace'::regclass AND d.objid = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass($4)))))
		FROM pg_roles r WHERE r.rolname = $1`, role, cfg.Slot, a.source.application, TableName(cfg)).Scan(&super, &me, &slots, &sessions, &members, &objects)
	left := func(why string) (Step, error) {
		return Step{What: fmt.Sprintf("role %s: not dropped: %s (if nothing needs it: DROP ROLE %s)", role, why, user)}, nil
	}
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Step{What: fmt.Sprintf("role %s: not there", role)}, nil
	case err != nil:
		return Step{}, classify("look who else uses the role", err)
	case super || me:
		return Step{What: fmt.Sprintf("role %s: an administrator's, left as it is", role)}, nil
	case len(slots) > 0:
		return left("slot " + some(slots) + " may be read with it")
	case len(sessions) > 0:
		return left("it is connected as " + some(sessions))
	case len(members) > 0:
		return left("role " + some(members) + " is a member of it")
	case objects > 0:
		return left(fmt.Sprintf("%d other objects of the server belong to it or have granted it rights", objects))
	}
	schema, _ := cfg.SchemaTable()
	return Step{What: fmt.Sprintf("role %s: drop it", role), SQL: []string{
		fmt.Sprintf("DO $$ BEGIN REVOKE ALL ON %s FROM %s; REVOKE ALL ON SCHEMA %s FROM %s; EXCEPTION WHEN undefined_table THEN NULL; END $$",
			TableName(cfg), user, Ident(schema), user),
		"DROP ROLE " + user,
	}}, nil
}

// some lists a few names, and how many more there are.
func some(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
