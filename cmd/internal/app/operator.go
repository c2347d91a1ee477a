package app

import (
	"os"
	"os/user"
)

// Operator returns the logged-in user as user@host, for the record of decisions.
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
