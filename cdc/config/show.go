package config

import (
	"encoding/json"
	"fmt"

	"github.com/walpost/walpost/cdc/identity"
)

// The methods of this file keep secrets out of everything that prints a configuration: fmt with any verb, a panic, JSON, YAML and logs.

// Format writes c without its secrets.
func (c Config) Format(f fmt.State, verb rune) {
	type shown Config
	identity.Show(f, verb, shown(identity.Hide(c)))
}

// MarshalJSON returns c without its secrets.
func (c Config) MarshalJSON() ([]byte, error) {
	type shown Config
	return json.Marshal(shown(identity.Hide(c)))
}

// MarshalYAML returns c without its secrets.
func (c Config) MarshalYAML() (any, error) {
	type shown Config
	return shown(identity.Hide(c)), nil
}

// Format writes s without its secrets.
func (s Source) Format(f fmt.State, verb rune) {
	type shown Source
	identity.Show(f, verb, shown(identity.Hide(s)))
}

// MarshalJSON returns s without its secrets.
func (s Source) MarshalJSON() ([]byte, error) {
	type shown Source
	return json.Marshal(shown(identity.Hide(s)))
}

// MarshalYAML returns s without its secrets.
func (s Source) MarshalYAML() (any, error) {
	type shown Source
	return shown(identity.Hide(s)), nil
}

// Format writes c without its secrets.
func (c Cleanup) Format(f fmt.State, verb rune) {
	type shown Cleanup
	identity.Show(f, verb, shown(identity.Hide(c)))
}

// MarshalJSON returns c without its secrets.
func (c Cleanup) MarshalJSON() ([]byte, error) {
	type shown Cleanup
	return json.Marshal(shown(identity.Hide(c)))
}

// MarshalYAML returns c without its secrets.
func (c Cleanup) MarshalYAML() (any, error) {
	type shown Cleanup
	return shown(identity.Hide(c)), nil
}

// Format writes d without its secrets.
func (d Debezium) Format(f fmt.State, verb rune) {
	identity.Show(f, verb, map[string]string(d.shown()))
}

// MarshalJSON returns d without its secrets.
func (d Debezium) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]string(d.shown())) }

// MarshalYAML returns d without its secrets.
func (d Debezium) MarshalYAML() (any, error) { return map[string]string(d.shown()), nil }
