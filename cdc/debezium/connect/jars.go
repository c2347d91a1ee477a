//go:build debezium

package connect

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed pom.xml
var pom []byte

// Jars is a folder of jars. Its folder lib is the class path, and its folder plugins is the worker's plugin.path.
type Jars struct{ Folder string }

// ClassPath returns the class path for java.
func (j Jars) ClassPath() string { return filepath.Join(j.Folder, "lib", "*") }

// Plugins returns the value of the worker's plugin.path.
func (j Jars) Plugins() string { return filepath.Join(j.Folder, "plugins") }

// isPlugin reports whether a jar belongs to Debezium's plugin: its classes and the libraries that Connect does not have.
func isPlugin(name string) bool {
	for _, prefix := range []string{"debezium", "postgresql-", "protobuf-java", "sketches-java"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// FetchJars returns the jars of pom.xml. The first call on a machine fetches them with Maven into the user's cache folder.
func FetchJars(ctx context.Context) (Jars, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return Jars{}, fmt.Errorf("no Java for Kafka Connect: install Java 17 so that java is in the PATH: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Jars{}, fmt.Errorf("find a folder for the jars: set HOME: %w", err)
	}
	sum := sha256.Sum256(pom)
	parent := filepath.Join(cache, "walpost")
	jars := Jars{filepath.Join(parent, "debezium-"+hex.EncodeToString(sum[:6]))}
	if _, err := os.Stat(jars.Folder); err == nil {
		return jars, nil
	}
	if _, err := exec.LookPath("mvn"); err != nil {
		return Jars{}, fmt.Errorf("no Maven for Debezium's jars: install it so that mvn is in the PATH: %w", err)
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return Jars{}, fmt.Errorf("make a folder for the jars: %w", err)
	}
	work, err := os.MkdirTemp(parent, "fetch-")
	if err != nil {
		return Jars{}, fmt.Errorf("make a folder for the jars: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := fetch(ctx, work); err != nil {
		return Jars{}, err
	}
	// Another test may have been faster. Then its folder stays.
	if err := os.Rename(work, jars.Folder); err != nil {
		if _, found := os.Stat(jars.Folder); found != nil {
			return Jars{}, fmt.Errorf("put the jars into their folder: %w", err)
		}
	}
	return jars, nil
}

// fetch brings the jars into the folders lib and plugins of work.
func fetch(ctx context.Context, work string) error {
	file := filepath.Join(work, "pom.xml") // Maven writes next to its pom
	if err := os.WriteFile(file, pom, 0o644); err != nil {
		return fmt.Errorf("write Maven's pom: %w", err)
	}
	lib, plugin := filepath.Join(work, "lib"), filepath.Join(work, "plugins", "debezium")
	mvn := exec.CommandContext(ctx, "mvn", "-q", "-B", "-Dstyle.color=never", "-f", file,
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+lib)
	if out, err := mvn.CombinedOutput(); err != nil {
		return fmt.Errorf("fetch Debezium's jars with Maven: look at its output, and whether it reaches its repository: %w\n%s", err, out)
	}
	if err := os.MkdirAll(plugin, 0o755); err != nil {
		return fmt.Errorf("make the plugin's folder: %w", err)
	}
	files, err := os.ReadDir(lib)
	if err != nil {
		return fmt.Errorf("list the jars: %w", err)
	}
	for _, f := range files {
		if isPlugin(f.Name()) {
			err = errors.Join(err, os.Rename(filepath.Join(lib, f.Name()), filepath.Join(plugin, f.Name())))
		}
	}
	return err
}
