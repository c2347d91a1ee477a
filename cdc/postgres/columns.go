package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// column is a column of the outbox as the catalog or the stream describes it.
type column struct {
	name    string
	typeOID uint32
}

// Type OIDs, fixed in pg_type.dat.
const (
	oidBytea       = 17
	oidInt8        = 20
	oidInt4        = 23
	oidText        = 25
	oidJSON        = 114
	oidVarchar     = 1043
	oidTimestamp   = 1114
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

var (
	textTypes = []uint32{oidText, oidVarchar}
	idTypes   = []uint32{oidUUID, oidInt8, oidInt4, oidText, oidVarchar}
)

// mapColumns finds the configured columns. Enums and domains have OIDs of their own database; they are taken as text where
// text is taken, so only the types that would be rendered wrongly are refused.
func mapColumns(cfg config.Columns, columns []column) (*relation, []string) {
	rel := &relation{field: make([]field, len(columns))}
	var problems []string
	for _, want := range []struct {
		field    field
		key      string
		name     string
		fallback string
		types    []uint32
		are      string
	}{
		{fieldID, "id", cfg.ID, "", idTypes, "uuid, bigint or text"},
		{fieldAggregateType, "aggregate_type", cfg.AggregateType, "", textTypes, "text"},
		{fieldAggregateID, "aggregate_id", cfg.AggregateID, "", idTypes, "text, uuid or bigint"},
		{fieldEventType, "event_type", cfg.EventType, "", textTypes, "text"},
		{fieldPayload, "payload", cfg.Payload, "", []uint32{oidJSONB, oidJSON, oidText, oidVarchar, oidBytea}, "jsonb, json, text or bytea"},
		{fieldHeaders, "headers", cfg.Headers, "headers", []uint32{oidJSONB, oidJSON, oidText, oidVarchar}, "jsonb, json or text"},
		{fieldCreatedAt, "created_at", cfg.CreatedAt, "created_at", []uint32{oidTimestamptz, oidTimestamp}, "timestamptz or timestamp"},
	} {
		name := want.name
		if name == "" {
			name = want.fallback
		}
		i := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
		if i < 0 {
			if want.name != "" {
				problems = append(problems, fmt.Sprintf("source.columns.%s: the table has no column %q: name the right one", want.key, name))
			}
			continue
		}
		builtIn := columns[i].typeOID < 16384
		if builtIn && !slices.Contains(want.types, columns[i].typeOID) {
			problems = append(problems, fmt.Sprintf("source.columns.%s: column %q has a type that cannot be used here: it must be %s", want.key, name, want.are))
			continue
		}
		if rel.field[i] != ignored {
			problems = append(problems, fmt.Sprintf("source.columns.%s: column %q is named twice", want.key, name))
		}
		rel.field[i] = want.field
		if want.field == fieldPayload {
			rel.isBytea = columns[i].typeOID == oidBytea
		}
	}
	return rel, problems
}

// unfit is the Halt for a server, publication or table that cannot be relayed as it is.
func unfit(problems []string) error {
	return &cdc.Halt{
		Found: strings.Join(problems, "; "),
		Means: "the relay cannot stream like this, and nothing is lost",
		Run:   "fix it and the relay goes on by itself",
	}
}
