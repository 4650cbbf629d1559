package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBenchOfANode(t *testing.T) {
	addr := startNode(t)
	got := cli(t, addr, strings.NewReader(""), "bench", "--node", addr, "--clients", "2", "-o", "json")
	require.Equal(t, 0, got.status, got.errs)
	var j benchJSON
	require.NoError(t, json.Unmarshal([]byte(got.out), &j))
	assert.Equal(t, "n", j.Node)
	assert.EqualValues(t, 1, j.Voters)
	var names []string
	for _, r := range j.Results {
		names = append(names, r.Name)
		assert.Positive(t, r.Value, r.Name)
		assert.LessOrEqual(t, r.P50, r.P99, r.Name)
	}
	assert.Equal(t, []string{
		"put, durable: 1 client", "take, durable: 1 client", "put, durable: 2 clients", "take, durable: 2 clients", "put to waiting take",
	}, names)
	runSteps(t, addr, []step{{line: "ls :/"}}) // nothing is left
}

func TestBenchOfADirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("kept"), 0o600))
	got := cli(t, "unix:/none", strings.NewReader(""), "bench", dir, "--size", "1M")
	require.Equal(t, 0, got.status, got.errs)
	for _, row := range []string{"directory " + dir, "large file: write 1 MiB, fsync", "small files: list", "metadata: unlink"} {
		assert.Contains(t, got.out, row)
	}
	assert.NotContains(t, got.out, "put", "it is no mount of GearsFS")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "mine", entries[0].Name())
}

func TestBenchRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	runSteps(t, "unix:/none", []step{
		{line: "bench " + dir + " --node ADDR", status: 2, errs: "exclude each other"},
		{line: "bench " + dir + " --clients 0", status: 2, errs: "--clients"},
		{line: "bench " + dir + " --size 1", status: 2, errs: "--size"},
		{line: "bench " + dir + " --size 1024G", status: 1, errs: "MiB are free"},
		{line: "bench " + file, status: 1, errs: "not a directory"},
		{line: "bench " + dir + "/none", status: 1, errs: "no such file"},
	})
}

func TestPercentiles(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(100-i)*time.Second)
	}
	p50, p99 := percentiles(took)
	assert.Equal(t, 50.0, p50)
	assert.Equal(t, 99.0, p99)
	p50, p99 = percentiles(nil)
	assert.Zero(t, p50+p99)
}
