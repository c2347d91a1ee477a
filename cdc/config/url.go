package config

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// foreign are parameters that stand in URLs written for another program. PostgreSQL knows none of them, and one would
// change what kind of connection is opened.
var foreign = map[string]string{
	"default_query_exec_mode":    "pgx",
	"statement_cache_capacity":   "pgx",
	"description_cache_capacity": "pgx",
	"replication":                "walpost, which sets it where it is needed",
}

// ParsePostgresURL reads the URL of a PostgreSQL database. Its error names the key that holds the URL, and never the
// URL.
func ParsePostgresURL(key, text string) (*pgconn.Config, error) {
	if strings.HasPrefix(text, "jdbc:") {
		return nil, fmt.Errorf("%s: a JDBC URL: take jdbc: away, and write user and password before the host (postgres://user@host:5432/database)", key)
	}
	cfg, err := pgconn.ParseConfig(text)
	if err != nil {
		if u, uerr := url.Parse(text); uerr == nil {
			for _, name := range []string{"sslrootcert", "sslcert", "sslkey"} {
				if path := u.Query().Get(name); path != "" && path != "system" {
					if _, ferr := os.Stat(path); ferr != nil {
						return nil, fmt.Errorf("%s: the file of the parameter %s cannot be read: %w", key, name, ferr)
					}
				}
			}
		}
		return nil, fmt.Errorf("%s: not a PostgreSQL URL (postgres://user@host:5432/database)", key)
	}
	var names []string
	for name := range cfg.RuntimeParams {
		if foreign[name] != "" || strings.HasPrefix(name, "pool_") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return cfg, nil
	}
	slices.Sort(names)
	whose := foreign[names[0]]
	if whose == "" {
		whose = "pgx's pool"
	}
	return nil, fmt.Errorf("%s: PostgreSQL does not know the parameter %q, it is for %s: take it out of the URL", key, names[0], whose)
}
