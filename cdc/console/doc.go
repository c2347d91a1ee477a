// Package console shows what the relays of a process are doing: Prometheus metrics and the status as JSON.
package console
