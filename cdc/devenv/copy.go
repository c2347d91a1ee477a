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

// CopyConfig says how a copy differs from its original.
type CopyConfig struct {
	// Settings are as in PostgresConfig; they add to the settings of the copied server or replace them.
	Settings map[string]string
	// Standby makes the copy follow the server in primary_conninfo (in Settings) until it is promoted.
	Standby bool
	// NoSlots leaves out the replication slots, as pg_basebackup does.
	NoSlots bool
}

// Copy starts another server on a copy of a stopped server's data: a standby, or a restored disk snapshot.
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
