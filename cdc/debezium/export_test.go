package debezium

import "slices"

// KnownNames returns the names of all options that an input may have, as they are written there.
func KnownNames(server bool) []string {
	i := &importing{Imported: &Imported{connector: &Connector{Server: server}}}
	names := i.knownNames()
	for _, f := range families {
		if f.connect && !server {
			names = append(names, f.name+"x")
		}
		if f.server && server {
			names = append(names, "debezium.source."+f.name+"x")
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Checked returns the names of the options whose values import checks, as a connector of Connect has them, and whether
// words beside the known ones may be right.
func Checked() map[string]bool {
	all := map[string]bool{}
	for name, a := range connectorValues {
		all[name] = a.open
	}
	for name, a := range producerValues {
		all[overrides+name] = a.open
	}
	return all
}
