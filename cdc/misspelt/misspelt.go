// Package misspelt finds names that the program does not read, and suggests the names that were meant.
package misspelt

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Variables checks the names of an environment's variables. The error contains each name that is nearly a known one,
// with the right name. unknown are the other names that begin with the prefix, except the variables that Kubernetes
// sets in every container for a Service of that name. others reports whether a name belongs to something else, which
// counts unless the name differs from a known one only in capitals and _; it may be nil.
func Variables(names []string, prefix string, known []string, others func(name string) bool) (unknown []string, err error) {
	var errs []error
	for _, name := range names {
		ours := strings.HasPrefix(strings.ToUpper(name), prefix)
		tests := strings.HasPrefix(name, prefix+"TEST_") // variables of the test suite, which its programs inherit
		if !ours && !strings.HasPrefix(name, "LOG_") || tests || slices.Contains(known, name) || ofService(name, names) {
			continue
		}
		meant := Nearest(name, known)
		switch {
		case meant != "" && (others == nil || !others(name) || plain(name) == plain(meant)):
			errs = append(errs, fmt.Errorf("environment %s: there is no such variable: did you mean %s?", name, meant))
		case ours:
			unknown = append(unknown, name)
		}
	}
	return unknown, errors.Join(errs...)
}

// ofService reports whether Kubernetes has set the variable for a Service.
func ofService(name string, names []string) bool {
	for _, host := range names {
		service, ok := strings.CutSuffix(host, "_SERVICE_HOST")
		rest, its := strings.CutPrefix(name, service+"_")
		if ok && its && (strings.HasPrefix(rest, "SERVICE_") || rest == "PORT" || strings.HasPrefix(rest, "PORT_")) {
			return true
		}
	}
	return false
}

// Nearest returns the name that differs least from written: in at most two letters, and in fewer for a short name;
// empty if there is none. Capitals, - and _ make no difference.
func Nearest(written string, names []string) (meant string) {
	written = plain(written)
	most := min(2, len(written)/4)
	for _, name := range names {
		if d := distance(written, plain(name)); d < most || d == most && meant == "" {
			meant, most = name, d
		}
	}
	return meant
}

// plain returns the name in small letters, without - and _.
func plain(name string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name))
}

// distance returns how many letters of a must be changed, added or removed to get b.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // distances from the letters of a so far to each beginning of b
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, change)
		}
	}
	return row[len(b)]
}
