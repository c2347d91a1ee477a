package sql

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rs/zerolog"

	"github.com/walpost/walpost/cdc/identity"
	"github.com/walpost/walpost/cdc/pglimit"
)

// migrateLock is the advisory lock that keeps two migrations of one database from running at once. The number has no
// meaning.
const migrateLock = 0x77616c706f7374

// othersWithin is how long another migration of the same database may take.
const othersWithin = "10min"

// GrantReader gives the role of readerURL the right to read the parts of the inventory that other services may know,
// and nothing else. The role must not be the service's own, and the schema must exist. Roles, passwords and repeated
// runs are handled as in Migrate.
func GrantReader(ctx context.Context, adminURL, serviceURL, readerURL string, out io.Writer) error {
	admin, err := administrator(ctx, adminURL)
	if err != nil {
		return err
	}
	reader, err := newRole(ctx, "reader", readerURL)
	if err != nil {
		return err
	}
	service, err := newRole(ctx, "service", serviceURL)
	if err != nil {
		return err
	}
	if reader.name == admin.User || reader.name == service.name {
		return fmt.Errorf("the reader's database URL has the role %q, which is the service's or the administrator's: give it another one, as in postgres://inventory_reader:password@host/%s", reader.name, admin.Database)
	}
	return withRole(ctx, admin, reader, out, func(conn *pgx.Conn) error {
		return grantRights(ctx, conn, string(Inventory)+"/reader.sql", reader.name, out)
	})
}

// role is a role that a URL names.
type role struct {
	whose, name, database string
	password              string
	token                 string // the name of the source of the password, if that is a token, so that no password is set
}

func newRole(ctx context.Context, whose, url string) (role, error) {
	who := identity.NewPostgres(whose+"'s database URL", url, zerolog.Nop())
	target, err := who.Target()
	if err != nil {
		return role{}, err
	}
	r := role{whose: whose, name: target.User, database: target.Database}
	r.password, r.token, err = who.RolePassword(ctx)
	return r, err
}

func administrator(ctx context.Context, url string) (*pgx.ConnConfig, error) {
	return identity.NewPostgres("administrator's database URL", url, zerolog.Nop()).Config(ctx)
}

// withRole creates the role and then calls do as the administrator, while no other migration runs.
func withRole(ctx context.Context, admin *pgx.ConnConfig, r role, out io.Writer, do func(*pgx.Conn) error) error {
	if r.database != admin.Database {
		return fmt.Errorf("the %s's database is %q and the administrator's %q: both URLs must name the same one", r.whose, r.database, admin.Database)
	}
	pglimit.Set(&admin.Config)
	conn, err := pgx.ConnectConfig(ctx, admin)
	if err != nil {
		return fmt.Errorf("connect as administrator: %w%s", err, connectHint(err, admin))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := alone(ctx, conn); err != nil {
		return err
	}
	err = ensureRole(ctx, conn, r, out)
	if err == nil {
		err = do(conn)
	}
	if lacks := lacking(ctx, conn, err); lacks != "" {
		return fmt.Errorf("%w: the administrator's role lacks a right: as a superuser run %s", err, lacks)
	}
	return err
}

// alone waits until no other migration of the database runs.
func alone(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `SET lock_timeout = '`+othersWithin+`'`); err != nil {
		return fmt.Errorf("set a timeout: %w", err)
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, migrateLock); err != nil {
		return fmt.Errorf("wait for another migration, which has taken longer than %s (SELECT pid, state, query FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory' says which): %w", othersWithin, err)
	}
	if _, err := conn.Exec(ctx, `SET lock_timeout = 0`); err != nil {
		return fmt.Errorf("reset the timeout: %w", err)
	}
	return nil
}

// lacking returns statements that give the administrator's role its missing right, if err is about a right. A schema
// without USAGE looks to a role as if it did not exist.
func lacking(ctx context.Context, conn *pgx.Conn, err error) (statements string) {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != pgerrcode.InsufficientPrivilege && pg.Code != pgerrcode.InvalidSchemaName {
		return ""
	}
	_ = conn.QueryRow(context.WithoutCancel(ctx), `SELECT coalesce(string_agg(format(statement, current_user), '; '), '') FROM (VALUES
		('ALTER ROLE %I CREATEROLE', (SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user)),
		(format('GRANT CREATE ON DATABASE %I TO %%I', current_database()), has_database_privilege(current_database(), 'CREATE')),
		('GRANT USAGE ON SCHEMA public TO %I', has_schema_privilege('public', 'USAGE')),
		('GRANT CREATE ON SCHEMA public TO %I', has_schema_privilege('public', 'CREATE'))) AS needs (statement, held) WHERE NOT held`).Scan(&statements)
	return statements
}

// connectHint returns the remedy for an error that people meet before anything works.
func connectHint(err error, config *pgx.ConnConfig) string {
	pgErr := (*pgconn.PgError)(nil)
	if !errors.As(err, &pgErr) {
		return ""
	}
	if name := pglimit.Parameter(&config.Config, pgErr); name != "" {
		return fmt.Sprintf(" (take the parameter %q out of the administrator's database URL)", name)
	}
	database, role := pgx.Identifier{config.Database}.Sanitize(), pgx.Identifier{config.User}.Sanitize()
	switch {
	case pgErr.Code == pgerrcode.InvalidCatalogName:
		return fmt.Sprintf(" (create it first: CREATE DATABASE %s)", database)
	case pgErr.Code == pgerrcode.InsufficientPrivilege:
		return fmt.Sprintf(" (as a superuser run GRANT CONNECT ON DATABASE %s TO %s)", database, role)
	case pgErr.Code == pgerrcode.InvalidAuthorizationSpecification && pgErr.Routine == "InitializeSessionUserId":
		return fmt.Sprintf(" (as a superuser run ALTER ROLE %s LOGIN, or CREATE ROLE %[1]s LOGIN if it does not exist)", role)
	}
	return ""
}

// ensureRole creates the role or checks it, and sets its password.
func ensureRole(ctx context.Context, conn *pgx.Conn, r role, out io.Writer) error {
	role, name := r.name, pgx.Identifier{r.name}.Sanitize()
	var mighty bool
	err := conn.QueryRow(ctx, `SELECT rolsuper OR rolreplication OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = $1`, role).Scan(&mighty)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		if _, err := conn.Exec(ctx, "CREATE ROLE "+name+" LOGIN"); err != nil {
			return fmt.Errorf("create the service's role %q: %w", role, err)
		}
		fmt.Fprintf(out, "role: created %q\n", role)
	case err != nil:
		return fmt.Errorf("look for the service's role %q: %w", role, err)
	case mighty:
		return fmt.Errorf("the service's role %q may do more than a service should: ALTER ROLE %s NOSUPERUSER NOREPLICATION NOCREATEROLE NOCREATEDB NOBYPASSRLS, or name another role in the service's URL", role, name)
	}
	switch {
	case r.token != "":
		fmt.Fprintf(out, "role: %q keeps its password: the value from %s counts as a token that expires (in RDS the role needs GRANT rds_iam TO %s)\n", role, r.token, name)
		return nil
	case r.password == "":
		return nil
	}
	verifier, err := scramVerifier(r.password)
	if err != nil {
		return fmt.Errorf("password in the service's database URL: %w", err)
	}
	if _, err := conn.Exec(ctx, "ALTER ROLE "+name+" LOGIN PASSWORD '"+verifier+"'"); err != nil {
		return fmt.Errorf("set the password of the service's role %q: %w", role, err)
	}
	fmt.Fprintf(out, "role: %q has the password of its URL\n", role)
	return nil
}

// grantRights gives the role exactly the rights in the file, and revokes all others.
func grantRights(ctx context.Context, conn *pgx.Conn, file, role string, out io.Writer) error {
	rights, err := fs.ReadFile(files, file)
	if err != nil {
		return fmt.Errorf("read the rights in %s: %w", file, err)
	}
	name := pgx.Identifier{role}.Sanitize()
	statements := "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM " + name + ";\n" + strings.ReplaceAll(string(rights), ":service", name)
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, statements)
		return err
	})
	if err != nil {
		return fmt.Errorf("grant the role %q its rights: %w", role, err)
	}
	whose, _, _ := strings.Cut(file, "/")
	whose += map[bool]string{true: " reader", false: " service"}[strings.HasSuffix(file, "reader.sql")]
	fmt.Fprintf(out, "rights: %q has those of the %s and no others in these tables\n", role, whose)
	var creates bool
	if err := conn.QueryRow(ctx, `SELECT has_schema_privilege($1, 'public', 'CREATE')`, role).Scan(&creates); err != nil {
		return fmt.Errorf("look at the rights of %q: %w", role, err)
	}
	if creates { // PostgreSQL 14 grants it to PUBLIC, and only the schema's owner can revoke it
		fmt.Fprintf(out, "rights: %q may CREATE in the schema public, which it does not need: as the schema's owner run REVOKE CREATE ON SCHEMA public FROM PUBLIC\n", role)
	}
	return nil
}

// scramVerifier returns the verifier that the server stores instead of a password. It is computed here, so that the
// password never reaches the server's log. Only printable ASCII is accepted: SASLprep, which libpq applies, leaves it
// unchanged.
func scramVerifier(password string) (string, error) {
	if strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", errors.New("use printable ASCII characters only")
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	const iterations = 4096
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive its key: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
