# Everything that differs between builds comes from stacklab/packer.py, and from stacklab/data there.

variable "source" {
  type        = string
  description = "An installer's ISO, or a disk to start from; a file that was verified already."
}

variable "checksum" {
  type        = string
  description = "sha256:HEX or sha512:HEX of the source; Packer looks once more."
}

variable "disk_image" {
  type        = bool
  description = "Whether the source is a disk, not an ISO."
}

variable "boot_command" {
  type        = list(string)
  description = "What is typed at the installer's boot menu."
  default     = []
}

variable "http_directory" {
  type        = string
  description = "Holds ks.cfg, which the installer fetches."
  default     = ""
}

variable "drives" {
  type        = list(string)
  description = "All of QEMU's -drive arguments, for a disk whose identity comes from drives beside it."
  default     = []
}

variable "console" {
  type        = string
  description = "QEMU writes here what the machine says on its serial port."
  default     = "/dev/null"
}

variable "output" {
  type        = string
  description = "The directory that Packer makes for the result."
}

variable "name" {
  type        = string
  description = "The machine's name, and its disk's."
  default     = "golden"
}

variable "key" {
  type        = string
  description = "The private ssh key of this build alone; root of the machine has the public one."
}

variable "hooks" {
  type        = string
  description = "An archive of the elements' hooks, made by stacklab/hooks.py."
}

variable "provision" {
  type        = string
  description = "The directory scripts/provision."
}

variable "environment" {
  type        = list(string)
  description = "NAME=VALUE, for the hooks."
  default     = []
}

variable "accelerator" {
  type        = string
  description = "QEMU's: kvm where a guest really runs with it, else tcg."
  default     = "tcg"
}

variable "cpu" {
  type        = string
  description = "QEMU's processor. Enterprise Linux 9 wants x86-64-v2: never qemu64."
  default     = "max"
}

variable "cpus" {
  type    = number
  default = 2
}

variable "memory" {
  type        = number
  description = "In MiB."
  default     = 2048
}

variable "disk" {
  type        = number
  description = "In MiB."
  default     = 12288
}

variable "seconds" {
  type        = string
  description = "How long the machine may take to answer by ssh, such as 3600s."
  default     = "3600s"
}
