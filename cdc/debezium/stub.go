package debezium

import (
	"regexp"

	"github.com/walpost/walpost/cdc"
	"github.com/walpost/walpost/cdc/config"
)

// Options are the router's options.
type Options struct{}

// Parse reads the options.
func Parse(config.Debezium) (*Options, error) { return &Options{}, nil }

// Configure sets what the options decide.
func (o *Options) Configure(*config.Config) {}

// Router makes the records that Debezium would write.
type Router struct{}

// New returns a router that follows the options.
func New(*Options) *Router { return &Router{} }

// NextWindow frees the memory of the records made before.
func (r *Router) NextWindow() {}

// Route fills rec from the row, or returns a RejectedError.
func (r *Router) Route(*cdc.Row, *cdc.Record) error { return nil }

// Topics returns no topics: only rows decide them.
func (r *Router) Topics() (known, patterns []string) { return nil, nil }

// Topic returns the topic of rows with the routed value.
func (r *Router) Topic(routedValue, _ string) string { return routedValue }

// Pattern returns an expression for the topics that rows may go to.
func (r *Router) Pattern() *regexp.Regexp { return regexp.MustCompile(".") }
