package devenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
)

// CopyConfig says what to make of a copy.
type CopyConfig struct {
	// Settings are as in PostgresConfig, beside or instead of those of the server that is copied.
	Settings map[string]string
	// Standby lets the copy follow what primary_conninfo in Settings names, until it is promoted.
	Standby bool
	// NoSlots leaves the replication slots out, as pg_basebackup does.
	NoSlots bool
}

// Copy starts another server on a copy of a stopped one's data: a standby, or what a disk snapshot would be when it is restored.
func (p *Postgres) Copy(ctx context.Context, cfg CopyConfig) (*Postgres, error) {
	if p.proc != nil {
		return nil, errors.New("PostgreSQL is running: Stop it before its data is copied")
	}
	c := &Postgres{bin: p.bin, user: p.user, log: &tail{next: p.log.next}, password: p.password}
	var err error
	if c.folder, err = os.MkdirTemp(filepath.Dir(p.folder), folderPattern); err != nil {
		return nil, fmt.Errorf("make a folder for PostgreSQL: %w", err)
	}
	if err := c.copyFrom(ctx, p, cfg); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (p *Postgres) copyFrom(ctx context.Context, from *Postgres, cfg CopyConfig) error {
	if err := p.user.openFolder(p.folder); err != nil {
		return err
	}
	var err error
	if p.lock, err = lockFolder(p.folder); err != nil {
		return fmt.Errorf("lock PostgreSQL's folder: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", from.data(), p.data()).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the data folder: %w\n%s", cmpErr(ctx, err), bytes.TrimSpace(out))
	}
	if cfg.NoSlots {
		slots, _ := filepath.Glob(filepath.Join(p.data(), "pg_replslot", "*"))
		for _, slot := range slots {
			if err := os.RemoveAll(slot); err != nil {
				return fmt.Errorf("leave a slot out: %w", err)
			}
		}
	}
	if cfg.Standby {
		if err := os.WriteFile(filepath.Join(p.data(), "standby.signal"), nil, 0o644); err != nil {
			return fmt.Errorf("make it a standby: %w", err)
		}
	}
	settings := map[string]string{}
	maps.Copy(settings, from.settings)
	maps.Copy(settings, cfg.Settings)
	return p.begin(ctx, settings)
}
