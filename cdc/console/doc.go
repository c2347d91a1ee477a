// Package console shows what a relay is doing: Prometheus metrics and the status as JSON.
package console
