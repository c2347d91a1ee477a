// Command sbom writes the list of the modules that are linked into a program of ours, with versions and licences, as
// CycloneDX JSON. It fails if a licence is unknown or not allowed, or if an SBOM that it checks is incomplete.
//
//	sbom walpost 1.2.3            the SBOM of the program in the file walpost, to standard output
//	sbom walpost walpost.cdx.json is this its SBOM?
package main

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/walpost/walpost/cmd/internal/app"
)

// allowed are the licences that modules may have (SPDX). They require only that their text comes with the program.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

// phrases identify licences. A file may contain several licences.
var phrases = []struct{ id, phrase string }{
	{"AGPL-3.0", "GNU AFFERO GENERAL PUBLIC LICENSE"},
	{"LGPL", "GNU LESSER GENERAL PUBLIC LICENSE"},
	{"GPL", "GNU GENERAL PUBLIC LICENSE"},
	{"MPL-2.0", "Mozilla Public License"},
	{"BUSL-1.1", "Business Source License"},
	{"SSPL-1.0", "Server Side Public License"},
	{"EPL", "Eclipse Public License"},
	{"CC", "Creative Commons"},
	{"Apache-2.0", "Apache License Version 2.0"},
	{"Apache-2.0", "Licensed under the Apache License, Version 2.0"},
	{"BSD-3-Clause", "may be used to endorse or promote products"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
	{"ISC", "Permission to use, copy, modify, and distribute this software for any purpose"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD-2-Clause", "Redistributions in binary form must reproduce the above copyright notice"},
}

func main() { app.Main(run) }

func run(ctx context.Context, args []string, _ func(string) string, stdout, _ io.Writer) error {
	if len(args) != 2 {
		return errors.New("give a program, and its version or the SBOM to check")
	}
	program := args[0]
	if filepath.Ext(args[1]) == ".json" {
		text, err := os.ReadFile(args[1])
		if err != nil {
			return err
		}
		return check(program, text)
	}
	made, err := describe(ctx, program, args[1])
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	return out.Encode(made)
}

// bom is an SBOM with those fields of CycloneDX 1.6 that we write. It has neither time nor serial number, so that the
// same program has the same SBOM.
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type     string    `json:"type"`
	Ref      string    `json:"bom-ref"`
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Purl     string    `json:"purl,omitempty"`
	Hashes   []hash    `json:"hashes,omitempty"`
	Licenses []license `json:"licenses"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

// license is one expression of SPDX.
type license struct {
	Expression string `json:"expression"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

// describe returns the SBOM of a program.
func describe(ctx context.Context, program, version string) (*bom, error) {
	modules, self, err := linked(program)
	if err != nil {
		return nil, err
	}
	sum, err := digest(program)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(program)
	b := &bom{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{component{
		Type: "application", Ref: name, Name: name, Version: version, Purl: "pkg:golang/" + self + "@" + strings.ReplaceAll(version, "+", "%2B") + "#cmd/" + name,
		Hashes: []hash{{"SHA-256", sum}}, Licenses: []license{{"Apache-2.0"}},
	}}}
	all := dependency{Ref: name}
	var errs []error
	for _, m := range modules {
		c, err := library(ctx, m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b.Components, all.On = append(b.Components, c), append(all.On, c.Ref)
	}
	b.Dependencies = []dependency{all}
	return b, errors.Join(errs...)
}

// linked returns the modules in a program, including Go's standard library, and the program's module.
func linked(program string) (modules []debug.Module, self string, err error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, "", err
	}
	modules = []debug.Module{{Path: "std", Version: info.GoVersion}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		modules = append(modules, *m)
	}
	return modules, info.Main.Path, nil
}

func digest(program string) (string, error) {
	text, err := os.ReadFile(program)
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), err
}

// library describes a module.
func library(ctx context.Context, m debug.Module) (component, error) {
	folder, err := folderOf(ctx, m)
	if err != nil {
		return component{}, fmt.Errorf("module %s: %w", m.Path, err)
	}
	ids, err := licences(folder)
	if err == nil {
		err = permitted(ids)
	}
	if err != nil {
		return component{}, fmt.Errorf("module %s %s: %w", m.Path, m.Version, err)
	}
	purl := "pkg:golang/" + m.Path + "@" + m.Version
	return component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, Purl: purl, Licenses: []license{{strings.Join(ids, " AND ")}}}, nil
}

// folderOf returns the folder with the source of a module.
func folderOf(ctx context.Context, m debug.Module) (string, error) {
	ask := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", m.Path)
	if m.Path == "std" {
		ask = exec.CommandContext(ctx, "go", "env", "GOROOT")
	}
	out, err := ask.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(ask.Args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// licences returns the licences in the licence files of a folder.
func licences(folder string) (ids []string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if e.IsDir() || !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, err
		}
		ids = append(ids, recognize(string(text))...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// recognize returns the licences whose phrases are in the text.
func recognize(text string) (ids []string) {
	text = strings.Join(strings.Fields(text), " ")
	for _, p := range phrases {
		if strings.Contains(strings.ToLower(text), strings.ToLower(p.phrase)) && (p.id != "BSD-2-Clause" || !slices.Contains(ids, "BSD-3-Clause")) {
			ids = append(ids, p.id)
		}
	}
	return ids
}

func permitted(ids []string) error {
	if len(ids) == 0 {
		return errors.New("its licence is not known: read it, and add its phrase to phrases in cmd/internal/sbom")
	}
	for _, id := range ids {
		if !slices.Contains(allowed, id) {
			return fmt.Errorf("its licence is %s, which is not among %s: use another module", id, strings.Join(allowed, ", "))
		}
	}
	return nil
}

// check returns every difference between an SBOM and the program.
func check(program string, text []byte) error {
	modules, _, err := linked(program)
	if err != nil {
		return err
	}
	sum, err := digest(program)
	if err != nil {
		return err
	}
	var b bom
	if err := json.Unmarshal(text, &b); err != nil {
		return fmt.Errorf("the SBOM of %s: %w", program, err)
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("the SBOM of "+program+" "+format, args...))
	}
	if b.Format != "CycloneDX" || b.Spec != "1.6" || b.Metadata.Component.Name != filepath.Base(program) || b.Metadata.Component.Version == "" {
		bad("is no CycloneDX 1.6 of a program with this name, and a version")
	}
	if !slices.Contains(b.Metadata.Component.Hashes, hash{"SHA-256", sum}) {
		bad("is of another build: its SHA-256 is not %s", sum)
	}
	for _, m := range modules {
		i := slices.IndexFunc(b.Components, func(c component) bool { return c.Name == m.Path && c.Version == m.Version })
		if i < 0 {
			bad("lacks %s %s", m.Path, m.Version)
			continue
		}
		c := b.Components[i]
		if len(c.Licenses) != 1 {
			bad("has no licence of %s", m.Path)
		} else if err := permitted(strings.Split(c.Licenses[0].Expression, " AND ")); err != nil {
			bad("has %s: %w", m.Path, err)
		}
		if len(b.Dependencies) != 1 || !slices.Contains(b.Dependencies[0].On, c.Ref) {
			bad("does not say that the program depends on %s", m.Path)
		}
	}
	if len(b.Components) != len(modules) {
		bad("has %d components, and the program %d modules", len(b.Components), len(modules))
	}
	return errors.Join(errs...)
}
