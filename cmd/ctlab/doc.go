// Ctlab is the attack lab: it shows what clients get while a host is attacked,
// without a guard, with ctguard, and with what people would otherwise use.
//
// It floods only namespaces that it made itself, from and to documentation
// addresses, bounded in count and time, and puts everything back on every exit.
// It is never installed with the package.
package main
