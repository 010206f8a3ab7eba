// Package config reads ctguard's configuration file: TOML, the defaults of a profile, and the network
// namespaces that an agent may guard.
//
// Every fault that is found comes back at once, each an [Error] with its line and its key. Positions are
// those of the TOML library.
//
// What a caller can get wrong: a [Config] is of all namespaces until [Config.In] makes it one namespace's;
// and a Config that came with an error is not to be used, whatever its fields say.
package config
