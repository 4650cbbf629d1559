package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/bench/load"
	"github.com/gearsfs/gearsfs/dgm"
)

// updates measures a change of a record in one round trip beside that in two,
// where nobody sees the record in between. Each client has a stream of its own.
func (b *bench) updates(ctx context.Context, nodes ...*gears) error {
	const update, takeAndPut = "update", "take and put"
	t := newTable(update, takeAndPut)
	for _, clients := range []int{1, 64} {
		for _, g := range nodes {
			name := fmt.Sprintf("update, %d B, %s, %s", recordBytes, clientsText(clients), g.network)
			if !b.rows.MatchString(name) {
				continue
			}
			for range b.rounds {
				for _, do := range t.columns {
					err := with(ctx, g, func() error {
						f, err := g.change(ctx, clients, do == update)
						t.add(name, "/s", do, f.PerSecond)
						return err
					})
					if err != nil {
						return err
					}
				}
			}
			t.row(name, "/s").printBeside(t.columns, 1, nil)
		}
	}
	return nil
}

// change has each client change a record over and over.
func (g *gears) change(ctx context.Context, clients int, update bool) (f load.Figures, err error) {
	all, err := g.clients(ctx, clients)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, closeRemotes(all)) }()
	file := g.newFile()
	keys := make([]gearsfs.Key, clients)
	for i, c := range all {
		keys[i] = gearsfs.Key(fmt.Sprint("k", i))
		if _, err := c.Put(ctx, dgm.Put{File: file, Key: keys[i], Records: record}); err != nil {
			return f, err
		}
	}
	return load.Run(ctx, clients, g.b.seconds/8, g.b.seconds, func(ctx context.Context, i int) (int, error) {
		if update {
			_, err := all[i].Update(ctx, dgm.Update{File: file, Key: keys[i], Record: record[0]})
			return 1, err
		}
		taken, err := all[i].Take(ctx, dgm.Take{File: file, Keys: keys[i : i+1]})
		if err != nil {
			return 0, err
		}
		_, err = all[i].Put(ctx, dgm.Put{File: file, Key: keys[i], Records: []gearsfs.NewRecord{{Data: taken[0].Data}}})
		return 1, err
	})
}

// eachRecords is how many runs of a command are timed.
const eachRecords = 2000

// eachBesideXargs measures the worker beside a plain xargs: runs of a command
// that does nothing, two at a time.
func (b *bench) eachBesideXargs(ctx context.Context, g *gears) error {
	const each, xargs = "gearsfs each", "xargs"
	name := fmt.Sprintf("each -j 2 -- true, %d runs", eachRecords)
	if !b.rows.MatchString(name) {
		return nil
	}
	var lines strings.Builder
	for i := range eachRecords {
		fmt.Fprintln(&lines, i)
	}
	t := newTable(each, xargs)
	err := with(ctx, g, func() error {
		for range b.rounds {
			file := ":" + g.newFile().Path
			gearsfs := func(args ...string) *exec.Cmd {
				return exec.CommandContext(ctx, filepath.Join(b.bin, "gearsfs"), args...)
			}
			if _, err := timed(gearsfs("put", "--node", g.addrs[0], file, "k", "-l", "--seal"), lines.String()); err != nil {
				return err
			}
			for column, cmd := range map[string]*exec.Cmd{
				each:  gearsfs("each", "--node", g.addrs[0], file, "k", "-j", "2", "--", "true"),
				xargs: exec.CommandContext(ctx, "xargs", "-P2", "-n1", "true"),
			} {
				took, err := timed(cmd, lines.String())
				if err != nil {
					return err
				}
				t.add(name, "/s", column, eachRecords/took.Seconds())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.rows[0].printBeside(t.columns, 1, map[string]float64{xargs: 0.8})
	return nil
}

// timed runs a command and returns how long it took.
func timed(cmd *exec.Cmd, input string) (time.Duration, error) {
	cmd.Stdin = strings.NewReader(input)
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return time.Since(begin), nil
}
