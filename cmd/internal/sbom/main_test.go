package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestCheckFindsWhatIsWrong checks wrong copies of the SBOM of this test program.
func TestCheckFindsWhatIsWrong(t *testing.T) {
	program := os.Args[0]
	for name, c := range map[string]struct {
		change func(*bom)
		says   string // empty: it is right
	}{
		"as it is made":                  {func(*bom) {}, ""},
		"a module is missing":            {func(b *bom) { b.Components = b.Components[1:] }, "lacks std go1."},
		"a module of another version":    {func(b *bom) { b.Components[1].Version = "v0.0.1" }, "lacks " + "github.com/"},
		"a module that is not in it":     {func(b *bom) { b.Components = append(b.Components, component{Name: "a"}) }, "components, and the program"},
		"no licence":                     {func(b *bom) { b.Components[1].Licenses = nil }, "has no licence of"},
		"a licence that is not allowed":  {func(b *bom) { b.Components[1].Licenses = []license{{"MIT AND GPL"}} }, "its licence is GPL"},
		"no dependency":                  {func(b *bom) { b.Dependencies = nil }, "does not say that the program depends"},
		"of another build":               {func(b *bom) { b.Metadata.Component.Hashes = nil }, "is of another build"},
		"of a program with another name": {func(b *bom) { b.Metadata.Component.Name = "other" }, "is no CycloneDX 1.6"},
		"without a version":              {func(b *bom) { b.Metadata.Component.Version = "" }, "is no CycloneDX 1.6"},
	} {
		t.Run(name, func(t *testing.T) {
			made, err := describe(t.Context(), program, "1.0")
			if err != nil {
				t.Fatal(err)
			}
			c.change(made)
			text, err := json.Marshal(made)
			if err != nil {
				t.Fatal(err)
			}
			if err := check(program, text); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
}

func TestLicencesAreAllowedByName(t *testing.T) {
	mit := "MIT License\n\nPermission is hereby granted, free of charge, to any\n person obtaining a copy"
	for text, want := range map[string]string{
		mit: "", "All rights reserved.": "is not known", "": "is not known",
		"                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007": "its licence is GPL",
		"GNU AFFERO GENERAL PUBLIC LICENSE": "its licence is AGPL", "GNU LESSER GENERAL\nPUBLIC LICENSE": "its licence is LGPL",
		"Mozilla Public License Version 2.0": "its licence is MPL-2.0", "Business Source License 1.1": "its licence is BUSL-1.1",
		mit + "\n\nThe following is under the\nGNU General Public License, version 2": "its licence is GPL",
	} {
		if err := permitted(recognize(text)); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}
