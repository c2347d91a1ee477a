package app

import (
	"os"
	"os/user"
)

// Operator returns who is logged in here, as user@host, for the records of decisions.
func Operator() string {
	by := "unknown"
	if who, err := user.Current(); err == nil {
		by = who.Username
	}
	if host, err := os.Hostname(); err == nil {
		by += "@" + host
	}
	return by
}
