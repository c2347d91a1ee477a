package cdc

// Shape describes the columns that a row's values come from, for a route that writes types differently. A column that
// the table does not have is nil.
type Shape struct {
	Table         string    `json:"table"` // schema.name, as the stream sends it
	ID            *Column   `json:"id,omitempty"`
	AggregateType *Column   `json:"aggregate_type,omitempty"`
	AggregateID   *Column   `json:"aggregate_id,omitempty"`
	EventType     *Column   `json:"event_type,omitempty"`
	Payload       *Column   `json:"payload,omitempty"`
	CreatedAt     *Column   `json:"created_at,omitempty"`
	Further       []*Column `json:"further,omitempty"` // in the order of config.Verbatim.Further
	Key           []*Column `json:"key,omitempty"`     // of the primary key, in its order; for config.Verbatim.Rekeyed
}

// Column is a column of the outbox table, as the catalog describes it.
type Column struct {
	Name     string   `json:"name"`
	Type     uint32   `json:"type"`               // OID; of a domain, the OID of its base type; 0: not PostgreSQL's own
	Domain   bool     `json:"domain,omitempty"`   // the column's type is a domain over Type
	TypeName string   `json:"type_name"`          // in SQL's notation, timestamp(3) without time zone for example
	Modifier int32    `json:"modifier"`           // -1: none
	NotNull  bool     `json:"not_null,omitempty"` // also of a primary key
	Default  string   `json:"default,omitempty"`  // the SQL of its default; empty: none
	Labels   []string `json:"labels,omitempty"`   // of an enum
}
