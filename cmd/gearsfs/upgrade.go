package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/gearsfs/gearsfs/mount"
)

const (
	upgradeWithin = 30 * time.Second
	upgradeLook   = 20 * time.Millisecond
)

// upgrade has a mount served by the program that is at its path now, and returns
// when it is.
func (a *app) upgrade(ctx context.Context, dir string) error {
	keeps, before, err := mount.Processes(dir)
	if err != nil {
		return err
	}
	if keeps == 0 {
		return fmt.Errorf("upgrade %s: its process %d is alone, and can't be replaced while it is mounted", dir, before)
	}
	program := fmt.Sprintf("/proc/%d/exe", before)
	old, err := os.Stat(program)
	if err != nil {
		return fmt.Errorf("upgrade %s: %w", dir, err)
	}
	if err := syscall.Kill(keeps, upgradeSignal); err != nil {
		return fmt.Errorf("upgrade %s: tell process %d: %w", dir, keeps, err)
	}
	limited, cancel := context.WithTimeout(ctx, upgradeWithin)
	defer cancel()
	for {
		_, now, err := mount.Processes(dir)
		if err != nil {
			return fmt.Errorf("upgrade %s: %w", dir, err)
		}
		if now != before {
			return a.upgraded(dir, old, now)
		}
		select {
		case <-time.After(upgradeLook): // nobody tells
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return errors.New("upgrade " + dir + ": the mount is served by the same process as before; what it printed says why")
		}
	}
}

// upgraded says what serves the mount.
func (a *app) upgraded(dir string, old os.FileInfo, worker int) error {
	program := fmt.Sprintf("/proc/%d/exe", worker)
	now, err := os.Stat(program)
	if err != nil {
		return fmt.Errorf("upgrade %s: %w", dir, err)
	}
	path, err := os.Readlink(program)
	if err != nil {
		return fmt.Errorf("upgrade %s: %w", dir, err)
	}
	same := ""
	if os.SameFile(old, now) {
		same = ", the same program as before"
	}
	return a.printf("%s is served by process %d, %s%s\n", dir, worker, path, same)
}
