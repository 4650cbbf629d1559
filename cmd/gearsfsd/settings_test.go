package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestFlagsBeforeEnvironmentBeforeFile(t *testing.T) {
	config := configFile(t, "# a node\ndata = /file\nname=file\n\nlisten = 127.0.0.1:1\nlisten = unix:/file.sock\ninsecure = true\ntls-ca = /ca with = in it\n")
	env := environment(map[string]string{
		"GEARSFSD_DATA": "/env", "GEARSFSD_NAME": "env", "GEARSFSD_CONFIG": config, "GEARSFSD_TLS_CERT": "/cert", "GEARSFSD_HTTP": "unix:/h", "GEARSFSD_MOUNT": "",
	})
	s, err := readSettings([]string{"--data", "/flag"}, env)
	require.NoError(t, err)
	assert.Equal(t, "/flag", s.data)
	assert.Equal(t, "env", s.name)
	assert.Equal(t, []string{"127.0.0.1:1", "unix:/file.sock"}, s.listen)
	assert.True(t, s.insecure)
	assert.Equal(t, "/cert", s.tls.Cert)
	assert.Equal(t, "unix:/h", s.http)
	assert.Equal(t, "/ca with = in it", s.tls.CA)
	assert.Empty(t, s.mount, "an empty variable says nothing")

	s, err = readSettings([]string{"--data", "/flag", "--listen", "a:1", "--listen", "b:2"}, env)
	require.NoError(t, err)
	assert.Equal(t, []string{"a:1", "b:2"}, s.listen, "the file adds nothing to what a flag says")
}

func TestSettingsOfACluster(t *testing.T) {
	s, err := readSettings([]string{"--data", "/d", "--join", "a:1,b:2", "--advertise", "c:3,unix:/c", "--verify-every", "0"},
		environment(map[string]string{"GEARSFSD_CATCHUP_RATE": "64M"}))
	require.NoError(t, err)
	assert.Equal(t, "a:1,b:2", s.join)
	assert.Equal(t, []string{"c:3", "unix:/c"}, s.advertise)
	assert.EqualValues(t, 64<<20, s.catchUp.Value)
	assert.Negative(t, s.verifyEvery(), "never")

	s, err = readSettings([]string{"--data", "/d"}, environment(map[string]string{"GEARSFSD_VERIFY_EVERY": "1d"}))
	require.NoError(t, err)
	assert.Equal(t, 24*time.Hour, s.verifyEvery())
	assert.Zero(t, s.catchUp.Value)
	s, err = readSettings([]string{"--data", "/d"}, environment(nil))
	require.NoError(t, err)
	assert.Zero(t, s.verifyEvery(), "as often as a node does by itself")
	assert.Zero(t, s.scrubRate(), "as fast as a node does by itself")
	s, err = readSettings([]string{"--data", "/d", "--scrub-rate", "0"}, environment(nil))
	require.NoError(t, err)
	assert.Negative(t, s.scrubRate(), "never")
	s, err = readSettings([]string{"--data", "/d"}, environment(map[string]string{"GEARSFSD_SCRUB_RATE": "2M"}))
	require.NoError(t, err)
	assert.EqualValues(t, 2<<20, s.scrubRate())
}

func TestListenDefaultsToASocket(t *testing.T) {
	s, err := readSettings([]string{"--data", "/d"}, environment(map[string]string{"XDG_RUNTIME_DIR": "/run/user/7"}))
	require.NoError(t, err)
	assert.Equal(t, []string{"unix:/run/user/7/gearsfs.sock"}, s.listen)
	s, err = readSettings([]string{"--data", "/d"}, environment(nil))
	require.NoError(t, err)
	assert.Equal(t, []string{"unix:/run/gearsfs.sock"}, s.listen)
}

func TestWrongSettings(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
	}{
		"no data":           {},
		"unknown flag":      {args: []string{"--data", "/d", "--nonsense"}},
		"no duration":       {args: []string{"--data", "/d", "--verify-every", "often"}},
		"no size":           {args: []string{"--data", "/d", "--catchup-rate", "fast"}},
		"argument":          {args: []string{"--data", "/d", "extra"}},
		"bad variable":      {args: []string{"--data", "/d"}, env: map[string]string{"GEARSFSD_INSECURE": "perhaps"}},
		"no file":           {args: []string{"--data", "/d", "--config", "/does/not/exist"}},
		"unknown setting":   {args: []string{"--data", "/d", "--config", configFile(t, "nonsense = 1\n")}},
		"file in file":      {args: []string{"--data", "/d", "--config", configFile(t, "config = x\n")}},
		"not a setting":     {args: []string{"--data", "/d", "--config", configFile(t, "data /d\n")}},
		"bad value in file": {args: []string{"--data", "/d", "--config", configFile(t, "insecure = perhaps\n")}},
	} {
		_, err := readSettings(c.args, environment(c.env))
		_, ok := errors.AsType[*usageError](err)
		assert.True(t, ok, "%s: %v", name, err)
	}
	_, err := readSettings([]string{"--help"}, environment(nil))
	assert.ErrorIs(t, err, pflag.ErrHelp)
}
